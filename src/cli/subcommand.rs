//! The subcommands: what each is called, and what its help says around its options.
//!
//! Texts alone; what a subcommand does is told in `app` and in `hand`.

/// What the program is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subcommand {
    /// Run the worker.
    #[default]
    Start,
    /// Write commands to their topic.
    Send,
    /// Show results.
    Results,
    /// Look for what is wrong.
    Doctor,
    /// Make topics and settings.
    Init,
}

use Subcommand::*;

impl Subcommand {
    /// All there are.
    pub const ALL: [Subcommand; 5] = [Start, Send, Results, Doctor, Init];

    /// As it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Start => "start",
            Send => "send",
            Results => "results",
            Doctor => "doctor",
            Init => "init",
        }
    }

    /// In a line.
    pub fn about(self) -> &'static str {
        match self {
            Start => "run the worker; this is what happens without a subcommand, too",
            Send => "write a command to the commands topic, and wait for its result if asked to",
            Results => "show what is on the results topic",
            Doctor => "check brokers, topics, group, rights and programs, and say how to mend what is wrong",
            Init => "create the topics that are missing, and a section of settings",
        }
    }

    /// What its help begins with.
    pub(super) fn head(self) -> &'static str {
        match self {
            Start => {
                "\
Usage: airkafka-worker [start] --brokers HOST:PORT[,HOST:PORT...] [OPTION...]
       airkafka-worker [start] --input FILE [OPTION...]
       airkafka-worker SUBCOMMAND [OPTION...]
       airkafka-worker generate man|bash|zsh|fish

Runs commands from a Kafka topic in parallel as subprocesses and writes their true outcome to a
result topic.
"
            }
            Send => {
                "\
Usage: airkafka-worker send [OPTION...] -- COMMAND...
       airkafka-worker send [OPTION...] --file FILE

Writes a command, a program and its arguments, to the commands topic, and prints the key and where
the record stands. A worker runs it. With --wait the result is shown too, and the exit code is that
of the command.
"
            }
            Results => {
                "\
Usage: airkafka-worker results [OPTION...]

Shows what is on the results topic, a line each: when it was written, how the command ended, where
its record stands, and its key.
"
            }
            Doctor => {
                "\
Usage: airkafka-worker doctor [OPTION...]

Checks what a worker with these options needs: settings, programs, brokers, topics, rights, group.
Prints a line for each check (ok, warn or problem), and how to mend what is wrong. Changes nothing.
"
            }
            Init => {
                "\
Usage: airkafka-worker init [OPTION...]

Creates the topics that are missing. What is there is left as it is. Then adds a section of settings
to the file that --config names, if it has none; without --config it is printed.
"
            }
        }
    }

    /// What its help ends with; that of the worker is longer and stands in `help`.
    pub(super) fn tail(self) -> &'static str {
        match self {
            Start => super::help::TAIL,
            Send => {
                "
Exit codes (beside those of the worker)
   0  all is written, and with --wait has succeeded
   3  some have failed, with --file and --wait
  75  a result did not come within --wait-timeout
  One command with --wait: its own exit code, as a shell shows it; 1 if it failed and none is told.

Examples
  airkafka-worker send --brokers localhost:9092 --wait -- echo hello
  airkafka-worker send --brokers localhost:9092 --env A=1 --timeout 5m -- sh -c 'echo $A'
  airkafka-worker send --brokers localhost:9092 --file jobs.jsonl --wait --wait-timeout 1h
"
            }
            Results => {
                "
Examples
  airkafka-worker results --brokers localhost:9092 --failed --since 1h
  airkafka-worker results --brokers localhost:9092 --follow --since 0
  airkafka-worker results --brokers localhost:9092 --output json | jq -r .tail
"
            }
            Doctor => {
                "
Exit codes
   0  no problem; there may be warnings
   1  a problem, a broker that cannot be reached included

Examples
  airkafka-worker doctor --brokers localhost:9092
  airkafka-worker doctor --config airflow.cfg --threads 8
"
            }
            Init => {
                "
Examples
  airkafka-worker init --brokers localhost:9092 --partitions 8
  airkafka-worker init --brokers localhost:9092 --config airflow.cfg
"
            }
        }
    }
}

impl std::str::FromStr for Subcommand {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Subcommand::ALL.into_iter().find(|subcommand| subcommand.name() == name).ok_or("is no subcommand")
    }
}
