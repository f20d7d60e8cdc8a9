//! Standard input and output, and log lines in etcd's form.

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::io::{self, BufRead, IsTerminal, Write};

/// Writes to stdout. A reader that has seen enough and closed the pipe ends the program, as it does other tools.
pub fn print(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if stdout.write_all(bytes).and_then(|()| stdout.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Writes a line to stdout.
pub fn say(line: &str) {
    print(format!("{line}\n").as_bytes());
}

/// Whether a person looks at stderr.
pub fn is_watched() -> bool {
    io::stderr().is_terminal()
}

/// Shows how far something is, in place, if a person looks at it. `total` 0: unknown.
pub fn progress(what: &str, done: u64, total: u64, unit: &dyn Fn(u64) -> String) {
    const WIDTH: u64 = 40;
    if !is_watched() {
        return;
    }
    if total == 0 {
        eprint!("\r{what}: {}\x1b[K", unit(done));
        return;
    }
    let filled = (done.min(total) * WIDTH / total) as usize;
    let bar = format!("{}{}", "=".repeat(filled), " ".repeat(WIDTH as usize - filled));
    eprint!("\r{what}: [{bar}] {} / {}\x1b[K", unit(done), unit(total));
}

/// Ends a progress bar.
pub fn end_progress() {
    if is_watched() {
        eprintln!();
    }
}

/// Writes a log line of the client to stderr, in the form of etcd's logger.
pub fn log(level: &str, message: &str, fields: &[(&str, &str)]) {
    log_as("etcd-client", level, message, fields);
}

/// Writes a log line to stderr, in the form of etcd's logger. `logger` names the part that speaks; empty: the tool itself.
pub fn log_as(logger: &str, level: &str, message: &str, fields: &[(&str, &str)]) {
    let now = time::OffsetDateTime::now_utc();
    let format =
        time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    let mut line = String::new();
    let mut object = crate::json::Object::begin(&mut line);
    object.text("level", level);
    object.text("ts", &now.format(format).unwrap_or_default());
    object.some_text("logger", logger);
    object.text("msg", message);
    for (name, value) in fields {
        object.text(name, value);
    }
    object.end();
    eprintln!("{line}");
}

/// What Go says when a file cannot be opened.
pub fn open_error(path: &str, error: &io::Error) -> String {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::AlreadyExists => "file exists".to_owned(),
        io::ErrorKind::IsADirectory => "is a directory".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    format!("open {path}: {reason}")
}

/// Asks for a password, which is not shown while it is typed. Where stdin is no terminal, reads a line. Ends the prompt's line
/// in both cases, as etcd's tools do.
pub fn ask_password(prompt: &str) -> io::Result<String> {
    print(prompt.as_bytes());
    let stdin = io::stdin();
    let shown = tcgetattr(&stdin).ok();
    if let Some(shown) = &shown {
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(shown) = &shown {
        tcsetattr(&stdin, OptionalActions::Flush, shown)?;
    }
    read?;
    print(b"\n");
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
