//! The log on stderr: one line each, with the time in UTC and the level. stdout is for data alone.

use std::io::Write;

use env_logger::Target;
use log::LevelFilter;
use serde::Serialize;

use crate::config::LogFormat;

/// A line of the log as JSON.
#[derive(Serialize)]
struct Line {
    time: String,
    level: &'static str,
    message: String,
}

/// Starts it; lines above `level` are dropped.
pub fn start(level: LevelFilter, format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).target(Target::Stderr);
    match format {
        LogFormat::Text => builder.format(|out, record| {
            let (time, level) = (out.timestamp_millis(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "{time} {style}{level:<5}{style:#} {}", record.args())
        }),
        LogFormat::Json => builder.format(|out, record| {
            let line = Line {
                time: out.timestamp_millis().to_string(),
                level: record.level().as_str(),
                message: record.args().to_string(),
            };
            serde_json::to_writer(&mut *out, &line)?;
            writeln!(out)
        }),
    }
    .init();
}
