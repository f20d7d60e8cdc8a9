//! Log lines as etcd's zap logger writes them, because tools wait for them and parse them.
//!
//! ```text
//! {"level":"info","ts":"2026-01-02T15:04:05.000000Z","caller":"server/run.rs:10","msg":"closed etcd server","name":"m1"}
//! 2026-01-02T15:04:05.000000Z  info  server/run.rs:10  closed etcd server  {"name":"m1"}        (tabs, --log-format=console)
//! ```
//! The code writes `tracing` events. Beyond their usual meaning:
//! - a field name with dashes is a string literal: `info!("local-member-id" = %id, "...")`;
//! - an explicit target is the logger's name: `info!(target: "raft", ...)`;
//! - `error!(fatal = true, ...)` has the level "fatal";
//! - a `?` value that reads as a JSON array, such as that of a list of strings, becomes one.
//!
//! # Invariants
//! - One line is one write, so lines of several threads or processes never mix.
//! - What is below the level costs one comparison. A line that comes again and again is thinned out: of the same level
//!   and message, the first hundred in a second are written and then every hundredth.
//! - A line that cannot be written is lost; the member does not stop for its log.

use crate::config::duration::GoDuration;
use parking_lot::Mutex;
use serde::Deserialize;
use std::cell::RefCell;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use time::{OffsetDateTime, UtcOffset};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

/// How and where to log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// What is worth a line.
    pub level: Level,
    /// What a line looks like.
    pub format: Format,
    /// Where lines go: `default` (stderr), `stderr`, `stdout`, `systemd/journal`, or paths.
    pub outputs: Vec<String>,
    /// When to begin a new file, if the only output is a file.
    pub rotation: Option<Rotation>,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { level: Level::Info, format: Format::Json, outputs: vec!["default".into()], rotation: None }
    }
}

/// Levels under zap's names, in order of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    Debug,
    Info,
    Warn,
    Error,
    DPanic,
    Panic,
    Fatal,
}

impl Level {
    /// The level of this name, in lower or upper case.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "debug" | "DEBUG" => Level::Debug,
            "info" | "INFO" | "" => Level::Info,
            "warn" | "WARN" => Level::Warn,
            "error" | "ERROR" => Level::Error,
            "dpanic" | "DPANIC" => Level::DPanic,
            "panic" | "PANIC" => Level::Panic,
            "fatal" | "FATAL" => Level::Fatal,
            _ => return None,
        })
    }

    fn numbered(number: u8) -> Self {
        const ALL: [Level; 7] =
            [Level::Debug, Level::Info, Level::Warn, Level::Error, Level::DPanic, Level::Panic, Level::Fatal];
        ALL[usize::from(number).min(ALL.len() - 1)]
    }

    fn filter(self) -> LevelFilter {
        match self {
            Level::Debug => LevelFilter::DEBUG,
            Level::Info => LevelFilter::INFO,
            Level::Warn => LevelFilter::WARN,
            // Fatal lines are events of level error, so they must get through; the rest is dropped later.
            Level::Error | Level::DPanic | Level::Panic | Level::Fatal => LevelFilter::ERROR,
        }
    }
}

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A JSON object.
    Json,
    /// Fields between tabs, with the rest as JSON at the end.
    Console,
}

/// `--log-rotation-config-json`, under the names and meanings of the lumberjack package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Rotation {
    /// Megabytes after which a new file is begun; 0 = 100.
    #[serde(rename = "maxsize")]
    pub max_size_mb: u64,
    /// Days after which an old file is removed; 0 = never.
    #[serde(rename = "maxage")]
    pub max_age_days: u64,
    /// Old files that are kept; 0 = all.
    #[serde(rename = "maxbackups")]
    pub max_backups: usize,
    /// Name old files by local time rather than UTC.
    #[serde(rename = "localtime")]
    pub local_time: bool,
    /// Compress old files. Read for compatibility; old files are left as they are.
    pub compress: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Rotation { max_size_mb: 100, max_age_days: 0, max_backups: 0, local_time: false, compress: false }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A file cannot be opened.
    #[error("couldn't open sink {path:?}: open {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no journal to talk to.
    #[error("cannot connect to the systemd journal: {0}")]
    Journal(#[source] io::Error),
    /// Logging has been set up before.
    #[error("logging is already set up")]
    Twice,
}

/// Sets up logging for the whole process. To be called once, before other threads are started: only then can the
/// local time zone be found out safely.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let layer = ZapLayer::new(config, open_all(config)?);
    let level = layer.level.clone();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer)).map_err(|_| LogError::Twice)?;
    LEVEL.set(level).map_err(|_| LogError::Twice)
}

/// What the log that [`init`] has set up is told from.
static LEVEL: OnceLock<Arc<AtomicU8>> = OnceLock::new();

/// Has the log that [`init`] has set up told this level and what weighs more from now on.
pub fn set_level(level: Level) {
    if let Some(current) = LEVEL.get() {
        current.store(level as u8, Ordering::Relaxed);
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Runs `body` with this logging on the current thread only; for tests and for errors before [`init`].
pub fn with<T>(config: &LogConfig, body: impl FnOnce() -> T) -> Result<T, LogError> {
    let layer = ZapLayer::new(config, open_all(config)?);
    Ok(tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), body))
}

/// Shows a duration as etcd's lines do: `took = %logging::took(elapsed)` gives `"1.5ms"`.
pub fn took(duration: Duration) -> GoDuration {
    GoDuration(duration)
}

fn open_all(config: &LogConfig) -> Result<Vec<Output>, LogError> {
    let mut outputs = Vec::new();
    for name in &config.outputs {
        let output = match name.as_str() {
            "default" | "stderr" => Output::Stderr,
            "stdout" => Output::Stdout,
            "systemd/journal" => Output::Journal(journal().map_err(LogError::Journal)?),
            "/dev/null" => continue,
            path => {
                let open = || LogFile::open(Path::new(path), config.rotation.clone());
                Output::File(Mutex::new(open().map_err(|source| LogError::Open { path: path.to_owned(), source })?))
            }
        };
        outputs.push(output);
    }
    Ok(outputs)
}

enum Output {
    Stderr,
    Stdout,
    File(Mutex<LogFile>),
    Journal(UnixDatagram),
}

impl Output {
    /// Writes one line. Errors are dropped: there is nowhere left to tell them.
    fn write(&self, level: Level, line: &[u8]) {
        let _lost = match self {
            Output::Stderr => io::stderr().lock().write_all(line),
            Output::Stdout => io::stdout().lock().write_all(line),
            Output::File(file) => file.lock().write(line),
            Output::Journal(socket) => socket.send(&journal_record(level, line)).map(drop),
        };
    }
}

fn journal() -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect("/run/systemd/journal/socket")?;
    // A journal that is stuck must not hold up the member.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A record of journald's native protocol.
fn journal_record(level: Level, line: &[u8]) -> Vec<u8> {
    let priority = match level {
        Level::Debug => 7,
        Level::Info => 6,
        Level::Warn => 4,
        Level::Error => 3,
        Level::DPanic | Level::Panic => 2,
        Level::Fatal => 0,
    };
    let mut record = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=etcd\nMESSAGE=").into_bytes();
    record.extend_from_slice(line); // one line, with its newline
    record
}

/// A log file that moves aside when it has grown large.
struct LogFile {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    rotation: Option<Rotation>,
}

impl LogFile {
    fn open(path: &Path, rotation: Option<Rotation>) -> io::Result<Self> {
        let file = File::options().append(true).create(true).open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(LogFile { path: path.to_owned(), file, size_bytes, rotation })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if let Some(rotation) = &self.rotation {
            let max_mb = if rotation.max_size_mb == 0 { 100 } else { rotation.max_size_mb };
            let is_full = self.size_bytes + line.len() as u64 > max_mb.saturating_mul(1 << 20);
            if is_full && self.size_bytes > 0 {
                let now = OffsetDateTime::now_utc();
                let offset = if rotation.local_time { local_offset() } else { UtcOffset::UTC };
                self.rotate(now.to_offset(offset))?;
            }
        }
        self.file.write_all(line)?;
        self.size_bytes += line.len() as u64;
        Ok(())
    }

    /// Moves the file to `NAME-TIME.EXT` beside it and begins a new one.
    fn rotate(&mut self, now: OffsetDateTime) -> io::Result<()> {
        let (stem, extension) = self.name_parts();
        let mut stamp = String::new();
        let (date, time) = (now.date(), now.time());
        let _ = write!(stamp, "{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day());
        let _ =
            write!(stamp, "T{:02}-{:02}-{:02}.{:03}", time.hour(), time.minute(), time.second(), time.millisecond());
        std::fs::rename(&self.path, self.path.with_file_name(format!("{stem}-{stamp}{extension}")))?;
        let rotation = self.rotation.take();
        *self = LogFile::open(&self.path, rotation)?;
        self.remove_old()
    }

    fn name_parts(&self) -> (String, String) {
        let part = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
        let extension = part(self.path.extension());
        (part(self.path.file_stem()), if extension.is_empty() { extension } else { format!(".{extension}") })
    }

    /// Removes the old files that are too many or too old. Their names sort by age.
    fn remove_old(&self) -> io::Result<()> {
        let Some(rotation) = &self.rotation else { return Ok(()) };
        let (stem, extension) = self.name_parts();
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut old = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let stamp = name.strip_prefix(&format!("{stem}-")).and_then(|rest| rest.strip_suffix(&extension));
            // 2006-01-02T15-04-05.000: nothing else beside the log may be taken for an old one.
            if stamp.is_some_and(|s| s.len() == 23 && s.bytes().all(|b| b.is_ascii_digit() || b"-T.".contains(&b))) {
                old.push(entry.path());
            }
        }
        old.sort();
        let too_many = if rotation.max_backups == 0 { 0 } else { old.len().saturating_sub(rotation.max_backups) };
        let max_age = Duration::from_secs(rotation.max_age_days.saturating_mul(86_400));
        for (index, path) in old.iter().enumerate() {
            let age = std::fs::metadata(path).and_then(|meta| meta.modified()).ok().and_then(|at| at.elapsed().ok());
            let too_old = !max_age.is_zero() && age.is_some_and(|age| age > max_age);
            if index < too_many || too_old {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// The local zone's offset from UTC; UTC if other threads make it unsafe to find out.
fn local_offset() -> UtcOffset {
    UtcOffset::current_local_offset().unwrap_or(UtcOffset::UTC)
}

/// Writes every event as a line.
struct ZapLayer {
    /// A [`Level`] as a number.
    level: Arc<AtomicU8>,
    format: Format,
    offset: UtcOffset,
    outputs: Vec<Output>,
    sampler: Sampler,
}

impl ZapLayer {
    fn new(config: &LogConfig, outputs: Vec<Output>) -> Self {
        ZapLayer {
            level: Arc::new(AtomicU8::new(config.level as u8)),
            format: config.format,
            offset: local_offset(),
            outputs,
            sampler: Sampler::new(),
        }
    }

    fn level(&self) -> Level {
        Level::numbered(self.level.load(Ordering::Relaxed))
    }

    fn is_wanted(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries tell at debug level what only their authors can use, several lines per request.
        const CHATTY: &[&str] = &["h2", "hyper", "hyper_util", "mio", "tokio", "runtime"];
        let target = metadata.target();
        let is_library = CHATTY.contains(&target.split("::").next().unwrap_or(target));
        *metadata.level() <= self.level().filter() && (!is_library || *metadata.level() <= tracing::Level::WARN)
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ZapLayer {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        !self.outputs.is_empty() && self.is_wanted(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if self.outputs.is_empty() { LevelFilter::OFF } else { self.level().filter() })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        thread_local! {
            static LINE: RefCell<Line> = RefCell::new(Line::default());
        }
        LINE.with(|line| {
            // A value's own formatting may log; that line gets buffers of its own.
            match line.try_borrow_mut() {
                Ok(mut line) => self.write(event, &mut line),
                Err(_) => self.write(event, &mut Line::default()),
            }
        });
    }
}

impl ZapLayer {
    fn write(&self, event: &Event<'_>, line: &mut Line) {
        line.clear();
        event.record(line);
        let level = match *event.metadata().level() {
            tracing::Level::ERROR if line.is_fatal => Level::Fatal,
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Info,
            _ => Level::Debug,
        };
        let now = OffsetDateTime::now_utc();
        let second = u64::try_from(now.unix_timestamp()).unwrap_or(0);
        if level < self.level() || !(level >= Level::Error || self.sampler.takes(level, &line.message, second)) {
            return;
        }
        line.assemble(event.metadata(), level, self.format, now.to_offset(self.offset));
        for output in &self.outputs {
            output.write(level, line.out.as_bytes());
        }
        line.shrink();
    }
}

/// The parts of a line in the making.
#[derive(Default)]
struct Line {
    message: String,
    /// `,"name":value` for each field.
    fields: String,
    is_fatal: bool,
    /// Where values are formatted before they are quoted.
    scratch: String,
    out: String,
}

impl Line {
    fn clear(&mut self) {
        self.message.clear();
        self.fields.clear();
        self.is_fatal = false;
        self.out.clear();
    }

    /// A large line must not hold its memory for the life of the thread.
    fn shrink(&mut self) {
        const KEPT: usize = 16 << 10;
        for buffer in [&mut self.message, &mut self.fields, &mut self.scratch, &mut self.out] {
            if buffer.capacity() > KEPT {
                *buffer = String::new();
            }
        }
    }

    fn assemble(&mut self, metadata: &Metadata<'_>, level: Level, format: Format, at: OffsetDateTime) {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
            Level::DPanic => "dpanic",
            Level::Panic => "panic",
            Level::Fatal => "fatal",
        };
        let logger = (metadata.module_path() != Some(metadata.target())).then(|| metadata.target());
        let caller = Caller(metadata.file().unwrap_or("unknown"), metadata.line().unwrap_or(0));
        let Line { message, fields, out, .. } = self;
        // Writing to a String cannot fail.
        let _ = match format {
            Format::Json => {
                let _ = write!(out, "{{\"level\":\"{level}\",\"ts\":\"{}\"", Stamp(at));
                if let Some(logger) = logger {
                    out.push_str(",\"logger\":");
                    quote(logger, out);
                }
                let _ = write!(out, ",\"caller\":\"{caller}\",\"msg\":");
                quote(message, out);
                writeln!(out, "{fields}}}")
            }
            Format::Console => {
                let _ = write!(out, "{}\t{level}\t", Stamp(at));
                if let Some(logger) = logger {
                    let _ = write!(out, "{logger}\t");
                }
                let _ = write!(out, "{caller}\t{}", message.replace('\n', "\\n"));
                match fields.strip_prefix(',') {
                    Some(fields) => writeln!(out, "\t{{{fields}}}"),
                    None => writeln!(out),
                }
            }
        };
    }

    fn name(&mut self, field: &Field) {
        self.fields.push(',');
        quote(field.name(), &mut self.fields);
        self.fields.push(':');
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
            return;
        }
        self.name(field);
        quote(value, &mut self.fields);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "fatal" {
            self.is_fatal = value;
            return;
        }
        self.name(field);
        self.fields.push_str(if value { "true" } else { "false" });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.name(field);
        let _ = write!(self.fields, "{value}");
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        let _ = write!(self.fields, "{value}");
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.name(field);
        // JSON has no infinities.
        let _ = if value.is_finite() { write!(self.fields, "{value}") } else { write!(self.fields, "\"{value}\"") };
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
            return;
        }
        self.scratch.clear();
        let _ = write!(self.scratch, "{value:?}");
        self.name(field);
        let list = self.scratch.starts_with('[').then(|| serde_json::from_str::<serde_json::Value>(&self.scratch).ok());
        match list.flatten() {
            Some(list) => {
                let _ = write!(self.fields, "{list}");
            }
            None => quote(&self.scratch, &mut self.fields),
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// Appends a JSON string.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            0..0x20 | 0x7f => "",
            _ => continue,
        };
        out.push_str(&text[plain..at]);
        out.push_str(escape);
        if escape.is_empty() {
            let _ = write!(out, "\\u{byte:04x}");
        }
        plain = at + 1;
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

/// A point in time as `2006-01-02T15:04:05.000000Z`, or with `+0100` instead of the Z.
struct Stamp(OffsetDateTime);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (date, time, offset) = (self.0.date(), self.0.time(), self.0.offset());
        write!(f, "{:04}-{:02}-{:02}", date.year(), u8::from(date.month()), date.day())?;
        write!(f, "T{:02}:{:02}:{:02}.{:06}", time.hour(), time.minute(), time.second(), time.microsecond())?;
        if offset.is_utc() {
            return write!(f, "Z");
        }
        let sign = if offset.is_negative() { '-' } else { '+' };
        write!(f, "{sign}{:02}{:02}", offset.whole_hours().abs(), offset.minutes_past_hour().abs())
    }
}

/// A place in the code as `folder/file.rs:line`; for a file at the top of a crate, the folder is the crate's.
struct Caller<'a>(&'a str, u32);

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = self.0.rsplit('/').filter(|part| *part != "src");
        let file = parts.next().unwrap_or("unknown");
        match parts.next() {
            Some(folder) => write!(f, "{folder}/{file}:{}", self.1),
            None => write!(f, "{file}:{}", self.1),
        }
    }
}

/// Thins out lines that repeat, as zap's sampler does: a counter for each hash of level and message, set back when a new
/// second begins. Two messages may share a counter.
struct Sampler {
    /// The second in the upper half, the count in the lower.
    counters: Box<[AtomicU64]>,
}

impl Sampler {
    const COUNTERS: usize = 4096;
    const FIRST: u64 = 100;
    const THEREAFTER: u64 = 100;

    fn new() -> Self {
        Sampler { counters: (0..Self::COUNTERS).map(|_| AtomicU64::new(0)).collect() }
    }

    fn takes(&self, level: Level, message: &str, second: u64) -> bool {
        // FNV-1a: spreads well enough, and costs nothing next to a write.
        let hash = std::iter::once(level as u8)
            .chain(message.bytes())
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let counter = &self.counters[hash as usize % Self::COUNTERS];
        let second = second & 0xffff_ffff;
        let counted = |before: u64| if before >> 32 == second { before + 1 } else { second << 32 | 1 };
        let before = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(counted(before)));
        let count = counted(before.unwrap_or_else(|before| before)) & 0xffff_ffff;
        count <= Self::FIRST || (count - Self::FIRST) % Self::THEREAFTER == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` with logging into a file, and returns the lines without their time.
    fn lines(config: LogConfig, body: impl FnOnce()) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let config = LogConfig { outputs: vec![path.to_str().unwrap().into()], ..config };
        with(&config, body).unwrap();
        std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
    }

    fn json(line: &str) -> serde_json::Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn a_line_has_zaps_keys_in_zaps_order() {
        let lines = lines(LogConfig::default(), || {
            tracing::info!("local-member-id" = "8e9e", term = 3u64, ok = true, took = %took(Duration::from_millis(7)), "a message");
            tracing::warn!(target: "raft", urls = ?["http://a:1", "http://b:2"], "x {}", 1);
        });
        let (head, rest) = lines[0].split_once(",\"caller\":").unwrap();
        assert!(head.starts_with("{\"level\":\"info\",\"ts\":\"20"), "{head}");
        let (caller, rest) = rest.split_once(",\"msg\":").unwrap();
        assert!(caller.starts_with("\"server/logging.rs:"), "{caller}");
        assert_eq!(rest, r#""a message","local-member-id":"8e9e","term":3,"ok":true,"took":"7ms"}"#);
        assert!(lines[1].contains(",\"logger\":\"raft\",\"caller\":"), "{}", lines[1]);
        assert!(lines[1].ends_with(r#""msg":"x 1","urls":["http://a:1","http://b:2"]}"#), "{}", lines[1]);
    }

    #[test]
    fn a_console_line_is_tabbed() {
        let lines = lines(LogConfig { format: Format::Console, ..LogConfig::default() }, || {
            tracing::error!(error = "broken", "failed");
            tracing::info!("plain");
        });
        let parts: Vec<_> = lines[0].split('\t').collect();
        assert_eq!((parts[1], parts[3], parts[4]), ("error", "failed", "{\"error\":\"broken\"}"));
        assert_eq!(lines[1].split('\t').count(), 4);
    }

    #[test]
    fn levels_filter_and_fatal_is_above_error() {
        let all = || {
            tracing::debug!("d");
            tracing::info!("i");
            tracing::warn!("w");
            tracing::error!("e");
            tracing::error!(fatal = true, "f");
        };
        let levels = |level| {
            let lines = lines(LogConfig { level, ..LogConfig::default() }, all);
            lines.iter().map(|line| json(line)["level"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(levels(Level::Debug), ["debug", "info", "warn", "error", "fatal"]);
        assert_eq!(levels(Level::Warn), ["warn", "error", "fatal"]);
        assert_eq!(levels(Level::Fatal), ["fatal"]);
    }

    #[test]
    fn whatever_a_value_holds_the_line_stays_json() {
        let odd = "quote \" backslash \\ newline \n tab \t bell \u{7} umlaut ü";
        let lines = lines(LogConfig::default(), || tracing::info!(odd, list = ?[odd], half = "[1,", "{odd}"));
        let line = json(&lines[0]);
        assert_eq!((line["msg"].as_str(), line["odd"].as_str()), (Some(odd), Some(odd)));
        assert_eq!(line["half"], "[1,");
    }

    #[test]
    fn a_message_that_repeats_is_thinned_out() {
        let sampler = Sampler::new();
        let taken = |second| (0..350).filter(|_| sampler.takes(Level::Info, "again", second)).count();
        assert_eq!(taken(1), 102, "the first hundred, the two-hundredth and the three-hundredth");
        assert_eq!(taken(2), 102, "a new second begins anew");
    }

    #[test]
    fn times_are_shown_in_their_zone() {
        let at = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap() + Duration::from_micros(7);
        assert_eq!(Stamp(at).to_string(), "2023-11-14T22:13:20.000007Z");
        let offset = UtcOffset::from_hms(-3, -30, 0).unwrap();
        assert_eq!(Stamp(at.to_offset(offset)).to_string(), "2023-11-14T18:43:20.000007-0330");
    }

    #[test]
    fn a_full_log_file_moves_aside() {
        let dir = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_size_mb: 1, max_backups: 2, ..Rotation::default() };
        let mut file = LogFile::open(&dir.path().join("etcd.log"), Some(rotation)).unwrap();
        let other = dir.path().join("etcd-notes.log");
        std::fs::write(&other, "not a log").unwrap();
        let start = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        for second in 0..4 {
            file.write(&[b'x'; 1 << 20]).unwrap();
            file.rotate(start + Duration::from_secs(second)).unwrap();
        }
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let old = ["etcd-2023-11-14T22-13-22.000.log", "etcd-2023-11-14T22-13-23.000.log"];
        assert_eq!(names, [old[0], old[1], "etcd-notes.log", "etcd.log"]);
    }
}
