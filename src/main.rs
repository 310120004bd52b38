//! The command line tool: SIGCHLD reset (or another mode of it, a client of the preloaded runner), arguments to configuration, logger, work, exit code.

use std::io::Write;
use std::process::ExitCode;

use airkafka_worker::cli::{self, Parsed};
use airkafka_worker::config::{Config, Env};
use airkafka_worker::{app, error, hand, logger, preload, sys};

fn main() -> ExitCode {
    if preload::client::is_meant() {
        return preload::client::run();
    }
    sys::reset_sigchld(); // before anything that could start a child
    let args = match cli::parse(std::env::args_os().skip(1)) {
        Parsed::Run(args) => args,
        Parsed::Print(text) => {
            let _ = std::io::stdout().write_all(text.as_bytes()); // who closed it does not want it
            return error::ExitCode::Clean.into();
        }
        Parsed::Usage(text) => {
            eprint!("airkafka-worker: {text}");
            return error::ExitCode::Usage.into();
        }
    };
    let config = match Config::load(&args, &Env::of_process()) {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("airkafka-worker: {mistakes}");
            return mistakes.exit_code().into();
        }
    };
    logger::start(config.log_level, config.log_format);
    match config.by_hand.clone() {
        Some(by_hand) => hand::run(&config, &by_hand),
        None => app::run(config).into(),
    }
}
