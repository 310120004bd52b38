//! A bell for a thread that waits for sockets: another thread rings, and the wait ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::{Error, Kind, Result, os_text};

/// An eventfd(2).
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// A bell that has not rung.
    pub fn new() -> Result<Waker> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(Waker)
            .map_err(|e| Error::new(Kind::Unexpected, format!("cannot make an eventfd: {}", os_text(&e.into()))))
    }

    /// Rings. Blocks never: a bell that rings already goes on ringing.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Whether it has rung; it is silent then.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_once_however_often_it_was_rung() {
        let waker = Waker::new().unwrap();
        assert!(!waker.take());
        waker.wake();
        waker.wake();
        assert!(waker.take());
        assert!(!waker.take());
    }
}
