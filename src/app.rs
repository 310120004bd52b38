//! Builds the pipeline, waits for its end in the direction of the flow, and decides the exit code.
//!
//! The main thread connects (so that a broker that is away is told before anything runs), then only waits.

use std::io::{IsTerminal, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use log::{error, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::broker::kafka_crate::{KafkaSink, KafkaSource};
use crate::broker::local::{LineSink, LineSource};
use crate::broker::wire::{dial::Dialer, kind, sink::WireSink};
use crate::broker::{self, Pair, Sink, Source, outage};
use crate::config::{self, Client, Config, Origin};
use crate::error::{Error, ExitCode, Kind, Result, os_text};
use crate::exec::registry::Registry;
use crate::exec::{self, Runner};
use crate::intake::Intake;
use crate::lock::{Lock, NotHeld};
use crate::pool::{self, Returns};
use crate::preload::Preload;
use crate::publish::Publisher;
use crate::record::ResultStyle;
use crate::shutdown::{Level, Shutdown};
use crate::{sys, systemd};

/// How often orphans are looked for.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// Signals within this time of each other count as one.
const SAME_SIGNAL: Duration = Duration::from_millis(50);
/// How much longer than the grace period the end may take once commands are being stopped.
const LAST_PATIENCE: Duration = Duration::from_secs(15);

/// Runs the worker until it is told to end, or its input has ended.
pub fn run(config: Config) -> ExitCode {
    info!("airkafka-worker {} {}", env!("CARGO_PKG_VERSION"), config.summary());
    config.remarks.iter().for_each(|remark| warn!("{remark}"));
    let principal = match &config.origin {
        Origin::Kafka(kafka) => kafka.settings.principal(),
        Origin::Input(_) => String::new(),
    };
    match run_to_the_end(config).map_err(|e| e.refused_as(&principal)) {
        Ok(code) => code,
        Err(e) => {
            error!("{e}");
            e.exit_code()
        }
    }
}

fn run_to_the_end(config: Config) -> Result<ExitCode> {
    let _lock = match config.ending.lock.as_deref().map(Lock::take) {
        None => None,
        Some(Ok(lock)) => Some(lock),
        Some(Err(NotHeld::Busy(who))) if config.ending.lock_busy_ok => {
            info!("{who}: nothing to do (--lock-busy-ok)");
            return Ok(ExitCode::Clean);
        }
        Some(Err(NotHeld::Busy(who))) => {
            error!("{who}; only one at a time may run (--lock)");
            return Ok(ExitCode::DrainCut);
        }
        Some(Err(NotHeld::Broken(why))) => {
            return Err(Error::new(Kind::Config, format!("--lock: {why}")).hint("give a file that can be written"));
        }
    };
    let shutdown = Arc::new(Shutdown::default());
    let registry = Arc::new(Registry::new(config.threads.get()));
    let preload = Preload::new(config.preload, registry.clone());
    watch_signals(shutdown.clone(), registry.clone(), preload.clone())?;
    sys::become_subreaper();
    let Some((source, sink)) = connect(&config, &shutdown)? else {
        info!("told to end before a broker was found");
        return Ok(ExitCode::Clean);
    };
    let (grace, drain_timeout, ending) = (config.exec.grace, config.drain_timeout, config.ending.clone());
    let failed = Arc::new(AtomicBool::new(false));
    if config.preload == config::Preload::Airflow {
        start_preload(&config.exec, preload.as_ref());
    }
    systemd::ready();
    let (ends, done) = start(config, source, sink, &shutdown, registry, preload.clone(), &failed)?;
    let ended =
        wait_for_end(&done, &shutdown, ending.runtime, drain_timeout, grace).and_then(|()| ends.join(&shutdown));
    preload.inspect(|preload| preload.end());
    match ended {
        Ok(ExitCode::Clean) if ending.fail_on_error && failed.load(Ordering::Relaxed) => Ok(ExitCode::CommandFailed),
        ended => ended,
    }
}

/// Starts the preloaded runner before there is a command for it.
fn start_preload(exec: &config::Exec, preload: Option<&Arc<Preload>>) {
    match (exec::airflow_entry(exec), preload) {
        (Ok(program), Some(preload)) => drop(preload.socket_for(&program)),
        (Err(why), _) => {
            warn!("nothing is preloaded: {why}; install executor/ beside airflow (pip install ./executor)")
        }
        (Ok(_), None) => {}
    }
}

/// Connects to both ends. `None`: told to end meanwhile.
fn connect(config: &Config, shutdown: &Shutdown) -> Result<Option<Pair>> {
    match &config.origin {
        Origin::Input(path) => Ok(Some((Box::new(LineSource::open(path.as_deref())?), Box::new(LineSink)))),
        Origin::Kafka(kafka) => connect_kafka(kafka, config.exec.max_deliveries, shutdown),
    }
}

/// Tries until `--connect-timeout` to reach the brokers and find the topics.
fn connect_kafka(kafka: &config::Kafka, max_deliveries: u32, shutdown: &Shutdown) -> Result<Option<Pair>> {
    let pause = |time| shutdown.at(Level::Drain).recv_timeout(time) != Err(RecvTimeoutError::Disconnected);
    outage::patiently("connecting", kafka.connect_timeout, pause, || open(kafka, max_deliveries))
}

/// Connects with the client that suits the brokers.
fn open(kafka: &config::Kafka, max_deliveries: u32) -> Result<Pair> {
    let crate_client = match kafka.client {
        Client::Kafka => true,
        Client::Wire => false,
        Client::Auto => kafka.settings.protocol() == "PLAINTEXT" && broker::are_too_old(&kafka.brokers),
    };
    if crate_client {
        return Ok((Box::new(KafkaSource::connect(kafka)?), Box::new(KafkaSink::connect(kafka)?)));
    }
    let dialer = Arc::new(Dialer::new(kafka)?);
    let (source, told) = kind::connect(kafka, max_deliveries, &dialer)?;
    let sink = WireSink::connect(kafka, dialer)?;
    info!("{told}"); // once, however often it is tried
    Ok((source, Box::new(sink)))
}

/// The threads that end with a result; to be joined in the direction of the flow.
struct Ends {
    intake: JoinHandle<Result<()>>,
    pool: Vec<JoinHandle<()>>,
    publish: JoinHandle<Result<()>>,
}

/// Starts all threads of the pipeline. The receiver disconnects when the last of them has ended.
fn start(
    config: Config,
    source: Box<dyn Source>,
    sink: Box<dyn Sink>,
    shutdown: &Arc<Shutdown>,
    registry: Arc<Registry>,
    preload: Option<Arc<Preload>>,
    failed: &Arc<AtomicBool>,
) -> Result<(Ends, Receiver<()>)> {
    let threads = config.threads.get();
    let (style, dead_letter) = match &config.origin {
        Origin::Kafka(kafka) => (ResultStyle::Topic(config.result_format), kafka.dead_letter_topic.is_some()),
        Origin::Input(_) => (ResultStyle::Lines, false),
    };
    let until = config.ending.until;
    let (busy, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    signal_hook::flag::register(SIGUSR1, asked.clone()).map_err(no_signals)?;
    let (jobs_in, jobs) = bounded(0);
    let (outcomes_in, outcomes) = bounded(2 * threads);
    let (settled_in, settled) = unbounded();
    let (done_in, done) = bounded(0);

    let runner = Arc::new(Runner::new(config.exec, shutdown.clone(), registry, preload));
    let returns = Returns::new(settled_in, busy.clone(), source.waker());
    let pool = pool::start(threads, &runner, &jobs, &outcomes_in, &returns, failed)?;
    drop((jobs, outcomes_in)); // the pool holds the ends that count
    let publish = spawn("airkafka-publish", &done_in, {
        let shutdown = shutdown.clone();
        move || Publisher { sink, style, dead_letter, shutdown: &shutdown }.run(&outcomes, &returns)
    })?;
    let intake = spawn("airkafka-consumer", &done_in, {
        let shutdown = shutdown.clone();
        move || Intake::new(source, threads, busy, asked, until, &shutdown).run(jobs_in, &settled)
    })?;
    Ok((Ends { intake, pool, publish }, done))
}

/// Starts a thread that talks to brokers; it holds a clone of `done` while it runs.
fn spawn(
    name: &str,
    done: &Sender<()>,
    work: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<JoinHandle<Result<()>>> {
    let done = done.clone();
    let work = move || {
        let _done = done;
        sys::take_no_signals();
        work()
    };
    thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| Error::new(Kind::Unexpected, format!("cannot start thread {name}: {}", os_text(&e))))
}

/// Waits for the pipeline's end, and sees to it that a drain does not last longer than it may.
fn wait_for_end(
    done: &Receiver<()>,
    shutdown: &Shutdown,
    runtime: Option<Duration>,
    drain_timeout: Option<Duration>,
    grace: Duration,
) -> Result<()> {
    let runtime_timer = runtime.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    crossbeam_channel::select! {
        recv(done) -> _ => return Ok(()),
        recv(runtime_timer) -> _ => {
            info!("--max-runtime is over: draining");
            shutdown.raise(Level::Drain);
        }
        recv(shutdown.at(Level::Drain)) -> _ => info!("draining: nothing new is started; a second signal stops what runs"),
    }
    systemd::stopping();
    let drain_timer = drain_timeout.map_or_else(crossbeam_channel::never, crossbeam_channel::after);
    crossbeam_channel::select! {
        recv(done) -> _ => return Ok(()),
        recv(drain_timer) -> _ => warn!("--drain-timeout is over: stopping what runs"),
        recv(shutdown.at(Level::Kill)) -> _ => warn!("stopping what runs; a third signal exits at once"),
    }
    shutdown.raise(Level::Kill);
    match done.recv_timeout(grace + LAST_PATIENCE) {
        Err(RecvTimeoutError::Timeout) => Err(Error::new(
            Kind::Unexpected,
            "a thread does not end (a broker that does not answer?); leaving it behind",
        )),
        _ => Ok(()),
    }
}

impl Ends {
    /// Joins the threads, which have ended or are about to, and says how the worker ended.
    fn join(self, shutdown: &Shutdown) -> Result<ExitCode> {
        let intake = joined(self.intake.join())?;
        for thread in self.pool {
            joined(thread.join())?;
        }
        let publish = joined(self.publish.join())?;
        if shutdown.level() == Level::Kill {
            warn!("ended before its time; what was stopped will run again");
            return Ok(ExitCode::DrainCut);
        }
        publish.and(intake)?;
        info!("ended; all that was started is reported");
        Ok(ExitCode::Clean)
    }
}

fn joined<T>(result: thread::Result<T>) -> Result<T> {
    result.map_err(|_| {
        Error::new(Kind::Unexpected, "a thread of the worker failed; please report it with the lines above")
    })
}

fn no_signals(e: std::io::Error) -> Error {
    Error::new(Kind::Unexpected, format!("cannot watch for signals: {}", os_text(&e)))
}

/// Starts the thread that obeys TERM and INT - drain, stop, exit at once - and in between reaps orphans. Where something
/// may be preloaded it obeys HUP as well: preload anew, or drain if there is nothing, or our terminal is gone.
fn watch_signals(shutdown: Arc<Shutdown>, registry: Arc<Registry>, preload: Option<Arc<Preload>>) -> Result<()> {
    let (mut signals, writer) = UnixStream::pair().map_err(no_signals)?;
    signals.set_read_timeout(Some(REAP_EVERY)).map_err(no_signals)?;
    let hung_up = Arc::new(AtomicBool::new(false));
    if preload.is_some() {
        signal_hook::flag::register(SIGHUP, hung_up.clone()).map_err(no_signals)?; // before the pipe, which wakes us
    }
    for signal in [SIGTERM, SIGINT].into_iter().chain(preload.as_ref().map(|_| SIGHUP)) {
        signal_hook::low_level::pipe::register(signal, writer.try_clone().map_err(no_signals)?).map_err(no_signals)?;
    }
    let watch = move || {
        let _writer = writer; // so that reading never meets the end
        let mut last = None;
        loop {
            if signals.read_exact(&mut [0]).is_err() {
                registry.reap_orphans(); // no signal within the time
                continue;
            }
            if hung_up.swap(false, Ordering::AcqRel) {
                let is_reload = !std::io::stderr().is_terminal() && preload.as_ref().is_some_and(|it| it.reload());
                if !is_reload {
                    shutdown.raise(Level::Drain);
                }
                continue;
            }
            // timeout(1) and some supervisors signal the process and then its group: one wish, told twice.
            if last.replace(Instant::now()).is_some_and(|last: Instant| last.elapsed() < SAME_SIGNAL) {
                continue;
            }
            match shutdown.level() {
                Level::Run => shutdown.raise(Level::Drain),
                Level::Drain => shutdown.raise(Level::Kill),
                Level::Kill => {
                    error!("third signal: exiting at once");
                    registry.kill_all();
                    std::process::exit(ExitCode::DrainCut as i32);
                }
            }
        }
    };
    thread::Builder::new().name("airkafka-signal".into()).spawn(watch).map(drop).map_err(no_signals)
}
