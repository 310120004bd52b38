//! The system calls that no safe library wraps; the only `unsafe` of the crate.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

/// Gives SIGCHLD its default action back. Started with SIGCHLD ignored (some supervisors and shells leave it so) the
/// kernel reaps children by itself and their exit status is lost; `wait-timeout` 0.2.1 even crashes.
pub fn reset_sigchld() {
    // SAFETY: sets a default action; no handler of ours is involved, and it runs before any thread is started.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// The process id of some child of ours that has ended and waits to be reaped; leaves it as it is.
pub fn peek_dead_child() -> Option<Pid> {
    // SAFETY: all bits zero is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: `info` outlives the call. WNOWAIT leaves the child reapable by its owner.
    let result = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) };
    if result != 0 {
        return None; // ECHILD: no children at all
    }
    // SAFETY: waitid succeeded, so the field is set: 0 if no child has ended.
    Pid::from_raw(unsafe { info.si_pid() })
}

/// Lets other threads take the process's signals. For threads that talk to brokers: a handler that runs in the middle
/// of a `write()` cuts it short. Not for threads that start children: they would inherit the mask and ignore our TERM.
pub fn take_no_signals() {
    // SAFETY: both calls only write to `set`, which outlives them; the mask is this thread's alone.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Keeps a descriptor that we were started with from the children that are started from now on.
pub fn close_on_exec(descriptor: i32) {
    // SAFETY: touches no memory; of a descriptor that is not open it only says so.
    unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
}

/// Lets the kernel give us the orphans of our commands, so that they can be found and stopped (PR_SET_CHILD_SUBREAPER).
pub fn become_subreaper() {
    if let Err(e) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        log::warn!("cannot become a subreaper ({e}): what commands leave behind is not reaped by this process");
    }
}

/// The signals that ask a process to end or to do something, taken as they come instead of obeyed.
pub struct Signals(OwnedFd);

/// Those.
const ASKING: [i32; 6] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

impl Signals {
    /// From now on. For a process of one thread.
    pub fn take() -> io::Result<Signals> {
        let set = set_of(&ASKING);
        // SAFETY: `set` outlives the calls; signalfd gives a descriptor that nobody else has.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Signals(OwnedFd::from_raw_fd(fd))),
            }
        }
    }

    /// From now on they are obeyed again, those that were not read as well.
    pub fn give_back(self) {
        let set = set_of(&ASKING);
        // SAFETY: `set` outlives the call.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    }

    /// The next one, and who has sent it.
    pub fn read(&self) -> Option<(i32, Option<Pid>)> {
        // SAFETY: all bits zero is a valid signalfd_siginfo, which is bytes and integers.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        // SAFETY: as many bytes as `info` has are written into it at the most.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size_of_val(&info)) };
        (read == size_of_val(&info).cast_signed())
            .then(|| (info.ssi_signo.cast_signed(), Pid::from_raw(info.ssi_pid.cast_signed())))
    }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: all bits zero is a sigset_t, which the call makes an empty one.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: writes to `set` alone.
    unsafe { libc::sigemptyset(&mut set) };
    for &signal in signals {
        // SAFETY: the same; a signal that does not exist is refused.
        unsafe { libc::sigaddset(&mut set, signal) };
    }
    set
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Ends this process by a signal, without a core of ours.
pub fn die_by(signal: i32) -> ! {
    let none = rustix::process::Rlimit { current: Some(0), maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    let set = set_of(&[signal]);
    // SAFETY: sets a default action, opens the mask and signals ourselves; `set` outlives the call.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
        libc::raise(signal);
    }
    std::process::exit(128 + signal) // one that does not end a process
}
