//! airkafka-worker: commands from a Kafka topic, run in parallel as subprocesses, their true outcome written back.
//!
//! Synchronous: OS threads and channels, no async runtime.
//!
//! # The way of one command
//!
//! ```text
//! topic -> broker (Source) -> intake -> jobs -> pool -> exec -> outcomes -> publish -> broker (Sink) -> result topic
//!                               ^                                             |
//!                               '------------------- settled <----------------'
//!                               '-> ledger -> commit
//! ```
//!
//! 1. `intake` polls its `Source`, keeps what it read in a short queue for each partition and hands a record over only when a
//!    thread of the pool is idle; from then on the record is *open* in its partition's ledger.
//! 2. `pool` decodes the record (`record`), runs it (`exec`) and sends what came of it.
//! 3. `publish` writes the result and waits for the broker's acknowledgement; only then is the offset *settled*.
//! 4. `intake` commits the lowest offset that is not settled, and beside it which ones beyond it are (`ledger`).
//!
//! So a crash at any point leaves a record either reported or uncommitted: worse to lose than to repeat.
//!
//! # Behind the seam
//!
//! `broker` has two traits, `Source` and `Sink`, and three places behind them:
//!
//! - `broker::wire`, our own client: [`wire::conn`](broker::wire::conn) (one connection: frames, versions, TLS below it,
//!   SASL at its start), [`wire::cluster`](broker::wire::cluster) (who leads what),
//!   [`wire::group`](broker::wire::group) and [`wire::assignor`](broker::wire::assignor) (membership, and who gets what),
//!   [`wire::fetch`](broker::wire::fetch) and [`wire::records`](broker::wire::records) (reading),
//!   [`wire::producer`](broker::wire::producer) (idempotent writing); `wire::source` and `wire::sink` put these together.
//!   [`wire::share`](broker::wire::share) is the other source, for share groups; [`wire::kind`](broker::wire::kind) chooses;
//! - `broker::kafka_crate`, for brokers before 0.11;
//! - `broker::local`, for `--input`.
//!
//! # By hand
//!
//! [`cli::Subcommand`] says what the program is to do; each row of the one table of options ([`cli::options`]) says which
//! subcommands it belongs to, and grammar, help and configuration go by that. Without a subcommand the worker runs (`app`).
//! The others, and `--dry-run`, are in `hand`: one thread, the client of `broker::wire`, no membership and no commits.
//!
//! # Tasks of Airflow
//!
//! `executor/` is Airflow's side. Its commands begin with `airkafka-task`. A new interpreter for each would cost ten times the
//! task, so `preload` keeps one that has imported Airflow, and starts for each command a small client
//! ([`preload::client`]), which stands for a forked child of it. `exec` knows no more than that the program is another one.
//!
//! # When a partition moves
//!
//! The assignment is sticky and cooperative: a partition that is to move has no owner for one generation. Its old owner
//! drops what waits, commits a last time and joins again. What still runs goes on; its worker names it in each join, first as
//! `away`, then as `done`, and the leader passes that on to the new owner, which holds the offset open meanwhile. A worker
//! leaves only when the owners have committed what it has done. The whole protocol is in
//! [`wire::assignor`](broker::wire::assignor), the bookkeeping in `intake::partitions`.
//!
//! # When records are ours one by one
//!
//! In a share group no partition is anybody's. A record comes as `Event::Acquired`, under an
//! [`AcquisitionLock`](broker::acquisition::AcquisitionLock) that travels with it; the ledgers stay empty, and what would be
//! settled there is told to the source: accept, reject, release. The source asks for as many records as threads are idle, so
//! threads say when they have become idle, and ring a bell ([`Waker`](broker::waker::Waker)) for the consumer thread, which
//! waits for its brokers meanwhile. A thread looks at the lock before it starts a command, while it runs, and before it
//! reports: what is lost is stopped and not reported; while it is in doubt, the report waits. How a lock comes to be in
//! doubt, and ours again, is in `wire::share::locks`; what happens when a leader has failed, in `wire::share::leaders`.
//!
//! # Under systemd
//!
//! `systemd` tells the service manager that the worker is connected and that it drains (`app`), and feeds its watchdog from
//! the consumer loop.
//!
//! # Threads
//!
//! | thread | module | owns | never |
//! |---|---|---|---|
//! | main | `app` | join handles, exit code | touches a child, or a broker once the threads run |
//! | `airkafka-signal` | `app` | the signal socket; reaps adopted orphans | blocks on a channel |
//! | `airkafka-consumer` | `intake` | Source, ledgers | runs a child, sends a result, blocks longer than one fetch |
//! | `airkafka-exec-N` | `pool`, `exec` | one child and its tree | touches a broker or an offset |
//! | `airkafka-preload` | `preload` | the preloaded runner, once it is wanted | runs a command |
//! | `airkafka-publish` | `publish` | Sink, unsent results | decides what is done |
//!
//! # Channels
//!
//! | channel | capacity | from | to | why it cannot deadlock |
//! |---|---|---|---|---|
//! | `jobs` | 0 | consumer | pool | the consumer waits for an idle thread, a settled offset and the drain at once |
//! | `outcomes` | 2 per thread | pool | publish | publish never waits for the pool or the consumer |
//! | `settled` | unbounded | publish, and pool what it did not start or report | consumer | never blocks; at most what is open is in it |
//!
//! Open work is at most one per thread, `outcomes` and one batch, so a dead result topic stops the intake instead of
//! filling memory. Closing the channels in the direction of the flow *is* the drain: the consumer drops `jobs`, the pool
//! ends and drops `outcomes`, publish ends and drops `settled`, the consumer commits a last time.
//!
//! # Non-obvious
//!
//! - SIGCHLD must not be ignored when `wait-timeout` runs: `main` resets it first (it crashes otherwise).
//! - The consumer thread talks to brokers over sockets that do not block, and waits for all of them at once: a heartbeat never
//!   waits for a fetch, a fetch never for a rebalance, one broker never for another. The other calls (commits, metadata)
//!   block, for a fraction of the session timeout at most.
//! - A share session is its connection's: when that closes, all its locks are gone. So it is authenticated anew in place, and
//!   never replaced by a fresh one while it lives.
//! - A command is started only within the lease of its partition (`Source::lease`), which is looked at when the record is
//!   handed over and right before the child is made: a process that was stopped for longer than its session (SIGSTOP, a
//!   suspended machine) wakes up with a record at hand, and must not start it.
//! - The codec reserves memory by lengths from the wire; `wire::guard` checks them first.
//! - Children are spawned without `pre_exec`, uid or a cleared PATH: std then takes its posix_spawn path, which stays
//!   fast however large we are. Programs are resolved to absolute paths for the same reason.
//! - Nobody calls `waitpid(-1)`: it would take away the exit status of another thread's child. Orphans that the kernel
//!   gives to us (we are their subreaper) are reaped one by one, by pid, with spawning held off (`exec::registry`).
//! - `ledger`, `record` and `config` touch no thread, channel, clock or socket.

pub mod app;
pub mod broker;
pub mod cli;
pub mod config;
pub mod error;
pub mod exec;
pub mod hand;
pub mod intake;
pub mod ledger;
pub mod lock;
pub mod logger;
pub mod pool;
pub mod preload;
pub mod publish;
pub mod record;
pub mod shutdown;
pub mod sys;
pub mod systemd;
