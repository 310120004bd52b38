//! The command line tool: signals reset, arguments to configuration, logger, work, exit code.
fn main() {}
