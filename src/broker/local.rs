//! `--input`: records from the lines of a file or of stdin, results as lines on stdout. Nothing is committed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use super::{Commit, Demand, Event, Outgoing, Position, Record, Sink, Source};
use crate::error::{Error, Kind, Result, os_text};
use crate::record;

/// Lines that are read ahead.
const READ_AHEAD: usize = 64;

/// Records from lines; their offset is the line's number, from 1.
///
/// A thread of its own reads, since a read from a terminal or a pipe cannot be given a time limit.
#[derive(Debug)]
pub struct LineSource {
    lines: Receiver<io::Result<(i64, Vec<u8>)>>,
    topic: Arc<str>,
    assigned: bool,
}

impl LineSource {
    /// Opens `path`; `None` is stdin.
    pub fn open(path: Option<&Path>) -> Result<LineSource> {
        let name = path.map_or("stdin".into(), |path| path.to_string_lossy().into_owned());
        let reader: Box<dyn BufRead + Send> = match path {
            None => Box::new(BufReader::new(io::stdin())),
            Some(path) => Box::new(BufReader::new(
                File::open(path)
                    .map_err(|e| Error::new(Kind::Config, format!("cannot read --input {name}: {}", os_text(&e))))?,
            )),
        };
        let (sender, lines) = bounded(READ_AHEAD);
        thread::Builder::new()
            .name("airkafka-input".into())
            .spawn(move || {
                for (line, number) in reader.split(b'\n').zip(1..) {
                    let last = line.is_err();
                    if sender.send(line.map(|line| (number, line))).is_err() || last {
                        return;
                    }
                }
            })
            .map_err(|e| Error::new(Kind::Unexpected, format!("cannot start the input thread: {}", os_text(&e))))?;
        Ok(LineSource { lines, topic: name.into(), assigned: false })
    }

    fn record(&self, (number, line): (i64, Vec<u8>)) -> Option<Event> {
        if line.trim_ascii().is_empty() {
            return None;
        }
        let (key, value) = record::from_input_line(&line);
        let at = Position { topic: self.topic.clone(), partition: 0, offset: number };
        Some(Event::Record(Record::new(at, key, value)))
    }
}

impl Source for LineSource {
    fn poll(&mut self, wait: Duration, demand: &Demand<'_>, events: &mut Vec<Event>) -> Result<()> {
        if !self.assigned {
            self.assigned = true;
            events.push(Event::Assigned { partition: 0, offset: 1, metadata: String::new() });
        }
        if demand.want == 0 {
            return Ok(());
        }
        match self.lines.recv_timeout(wait) {
            Ok(Ok(line)) => events.extend(self.record(line)),
            Ok(Err(e)) => {
                return Err(Error::new(Kind::Unexpected, format!("cannot read on in {}: {}", self.topic, os_text(&e))));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => events.push(Event::End),
        }
        Ok(())
    }

    fn commit(&mut self, _: &[Commit]) -> Result<()> {
        Ok(())
    }

    fn metadata_limit(&self) -> usize {
        0
    }
}

/// Results as lines on stdout.
#[derive(Debug)]
pub struct LineSink;

impl Sink for LineSink {
    fn send(&mut self, unsent: &mut Vec<Outgoing>) -> Result<()> {
        let mut bytes = Vec::new();
        for out in &*unsent {
            bytes.extend_from_slice(out.value.as_deref().unwrap_or_default());
            bytes.push(b'\n');
        }
        let mut stdout = io::stdout().lock();
        stdout
            .write_all(&bytes)
            .and_then(|()| stdout.flush())
            .map_err(|e| Error::new(Kind::Unexpected, format!("cannot write results to stdout: {}", os_text(&e))))?;
        unsent.clear();
        Ok(())
    }
}
