//! What a service manager is told (sd_notify(3)): that the worker is ready, that its consumer loop is alive, that it ends.
//!
//! Without one - `NOTIFY_SOCKET` is not set - nothing is told, and it costs nothing.

use std::time::{Duration, Instant};

use log::debug;
use sd_notify::NotifyState;

/// The variables by which it is known; they are not for commands.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The worker takes commands from now on.
pub fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("taking commands")]);
}

/// The worker takes no more, and ends when what runs has.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Tells that the loop that owns it goes round; if it does not any more, the service manager starts the worker anew.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// Fed twice as often as the service manager asks for, if it does (`WatchdogSec=`).
    pub fn of_process() -> Watchdog {
        Watchdog { every: sd_notify::watchdog_enabled().map(|within| within / 2), next: Instant::now() }
    }

    /// To be called whenever the loop goes round.
    pub fn feed(&mut self) {
        let Some(every) = self.every else { return };
        let now = Instant::now();
        if now >= self.next {
            self.next = now + every;
            tell(&[NotifyState::Watchdog]);
        }
    }
}

/// A service manager that does not listen is no reason to run no commands.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        debug!("the service manager cannot be told {state:?}: {e}");
    }
}
