//! What is done by hand: `send`, `results`, `doctor`, `init`, and the worker's `--dry-run`.
//!
//! One thread, which may wait. Talks to brokers with the client of the worker, joins no group and commits nothing. stdout
//! is for data; what goes wrong is logged as the worker logs it.

mod doctor;
mod dry_run;
mod init;
mod reader;
mod results;
mod send;
mod view;
mod wait;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{debug, error, warn};

use crate::broker::outage;
use crate::broker::wire::cluster::Cluster;
use crate::broker::wire::dial::Dialer;
use crate::config::by_hand::ByHand;
use crate::config::{self, Config, Origin};
use crate::error::{self, Error, Kind, Result, os_text};

/// The longest that an answer of a broker is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does it, and says how the process ends.
pub fn run(config: &Config, by_hand: &ByHand) -> ExitCode {
    debug!("airkafka-worker {} {}", env!("CARGO_PKG_VERSION"), config.summary());
    config.remarks.iter().for_each(|remark| warn!("{remark}"));
    let mut out = Out::default();
    let done = match (&config.origin, by_hand) {
        (_, ByHand::DryRun) => dry_run::run(config, &mut out).map(clean),
        (Origin::Kafka(kafka), by_hand) => {
            let done = Reach::new(kafka).and_then(|reach| match by_hand {
                ByHand::Send(send) => send::run(&reach, send, &mut out),
                ByHand::Results(results) => results::run(&reach, results, &mut out).map(clean),
                ByHand::Init(init) => init::run(&reach, init, &mut out).map(clean),
                ByHand::Doctor(asked) => doctor::run(&reach, config, asked, &mut out),
                ByHand::DryRun => unreachable!("it is above"),
            });
            done.map_err(|e| e.refused_as(&kafka.settings.principal()))
        }
        (Origin::Input(_), _) => Err(Error::new(Kind::Config, "this needs brokers").hint("give --brokers HOST:PORT")),
    };
    let done = done.and_then(|code| out.flush().map(|()| code));
    done.unwrap_or_else(|e| {
        error!("{e}");
        e.exit_code().into()
    })
}

fn clean((): ()) -> ExitCode {
    error::ExitCode::Clean.into()
}

/// Lines on stdout. Who has closed it (`| head`) wants no more of them, which is no error.
#[derive(Default)]
struct Out {
    closed: bool,
}

impl Out {
    fn line(&mut self, line: &str) -> Result<()> {
        self.write(|stdout| writeln!(stdout, "{line}"))
    }

    fn flush(&mut self) -> Result<()> {
        self.write(|stdout| stdout.flush())
    }

    fn write(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        if self.closed {
            return Ok(());
        }
        match write(&mut io::stdout().lock()) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            Err(e) => return Err(Error::new(Kind::Unexpected, format!("cannot write to stdout: {}", os_text(&e)))),
            Ok(()) => {}
        }
        Ok(())
    }
}

/// How far something that takes its time has come: one line, and only on a terminal.
struct Progress {
    shown: bool,
}

impl Progress {
    /// Shown if `wanted` and if somebody can see it.
    fn new(wanted: bool) -> Progress {
        Progress { shown: wanted && io::stderr().is_terminal() }
    }

    /// `done` of `all`; the cursor goes back to the start of the line, so that whatever is written next takes its place.
    fn show(&self, what: &str, done: usize, all: usize) {
        const WIDTH: usize = 30;
        if self.shown {
            let filled = (done * WIDTH).checked_div(all).unwrap_or(WIDTH).min(WIDTH);
            eprint!("\x1b[K{what} [{:-<WIDTH$}] {done}/{all}\r", "#".repeat(filled));
        }
    }

    fn clear(&self) {
        if self.shown {
            eprint!("\x1b[K");
        }
    }
}

/// The way to the brokers.
struct Reach<'a> {
    kafka: &'a config::Kafka,
    dialer: Arc<Dialer>,
}

impl<'a> Reach<'a> {
    fn new(kafka: &'a config::Kafka) -> Result<Reach<'a>> {
        Ok(Reach { kafka, dialer: Arc::new(Dialer::new(kafka)?) })
    }

    /// How long an answer may take.
    fn patience(&self) -> Duration {
        self.kafka.settings.request_timeout.min(PATIENCE)
    }

    fn cluster(&self) -> Cluster {
        Cluster::new(self.dialer.clone(), self.kafka.brokers.clone(), self.patience())
    }

    /// Tries for `--connect-timeout`.
    fn patiently<T>(&self, activity: &'static str, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        let pause = |time| {
            thread::sleep(time);
            true
        };
        let done = outage::patiently(activity, self.kafka.connect_timeout, pause, attempt)?;
        done.ok_or_else(|| Error::new(Kind::Unexpected, format!("{activity} was given up")))
    }
}
