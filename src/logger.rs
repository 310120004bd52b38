//! The log on stderr: one line each, with the time in UTC and the level. stdout is for data alone.

use std::io::Write;

use env_logger::Target;
use log::LevelFilter;

/// Starts it; lines above `level` are dropped.
pub fn start(level: LevelFilter) {
    env_logger::Builder::new()
        .filter_level(level)
        .target(Target::Stderr)
        .format(|out, record| {
            let (time, level) = (out.timestamp_millis(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "{time} {style}{level:<5}{style:#} {}", record.args())
        })
        .init();
}
