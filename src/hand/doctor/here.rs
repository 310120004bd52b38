//! What is to be here, on the worker's machine: programs and directories.

use super::Report;
use crate::config::Config;
use crate::config::by_hand::Doctor;
use crate::error::Result;
use crate::exec::airflow_entry;

/// Checks them; what is configured and wrong was found with the configuration.
pub fn check(config: &Config, asked: &Doctor, report: &mut Report) -> Result<()> {
    for mistake in &asked.found {
        // Each ends with what to do.
        let (told, fix) = mistake.text.rsplit_once("; ").unwrap_or((&mistake.text, "see airkafka-worker --help"));
        report.problem("settings", told, fix)?;
    }
    let exec = &config.exec;
    if let Some(shell) = &exec.shell {
        report.ok("shell", &format!("{} can be run", shell.display()))?;
    }
    if let Some(directory) = &exec.output_dir {
        report.ok("output directory", &format!("{} can be written to", directory.display()))?;
    }
    let Some(airflow) = &exec.airflow else {
        let told = "not on PATH: commands that begin with the word airflow would be reported as not found";
        return report.warn("airflow", told, "give --airflow PATH; none is needed if no command begins with it");
    };
    report.ok("airflow", &format!("{} can be run", airflow.display()))?;
    match airflow_entry(exec) {
        Ok(program) => report.ok("airkafka-task", &format!("{} runs the tasks of KafkaExecutor", program.display())),
        Err(why) => {
            let fix = format!("{} install ./executor", airflow.with_file_name("pip").display());
            report.warn("airkafka-task", &format!("{why}: tasks of KafkaExecutor would be reported as not found"), &fix)
        }
    }
}
