//! What the long-running programs share: flags with values, and how a run becomes an exit status.

use std::fmt::Display;
use std::process::ExitCode;
use std::str::FromStr;

use super::Binary;

/// The flags that were typed, each with its value, until they are taken.
#[derive(Debug)]
pub struct Arguments(Vec<(String, String)>);

impl Arguments {
    /// Reads `--flag value` and `--flag=value`.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Arguments, String> {
        let mut words = words.into_iter();
        let mut flags = Vec::new();
        while let Some(word) = words.next() {
            let (flag, value) = match word.split_once('=') {
                Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let value = value.or_else(|| words.next()).ok_or_else(|| format!("{flag} needs a value"))?;
            flags.push((flag, value));
        }
        Ok(Arguments(flags))
    }

    /// The last value of `flag`, if it was typed.
    pub fn text(&mut self, flag: &str) -> Option<String> {
        let mut value = None;
        self.0.retain_mut(|(typed, text)| {
            let other = typed != flag;
            if !other {
                value = Some(std::mem::take(text));
            }
            other
        });
        value
    }

    /// The same as a number, or `default`.
    pub fn number<N: FromStr<Err: Display>>(&mut self, flag: &str, default: N) -> Result<N, String> {
        match self.text(flag) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|problem| format!("{flag} {text}: {problem}")),
        }
    }

    /// The same as a program.
    pub fn binary(&mut self, flag: &str) -> Option<Binary> {
        self.text(flag).map(Binary::at)
    }

    /// The same as programs with commas between them; `ours` names our own.
    pub fn binaries(&mut self, flag: &str) -> Option<Vec<Binary>> {
        let text = self.text(flag)?;
        Some(text.split(',').map(|path| if path == "ours" { super::ours() } else { Binary::at(path) }).collect())
    }

    /// An error if something is left that nobody has asked for.
    fn finish(self) -> Result<(), String> {
        match self.0.first() {
            None => Ok(()),
            Some((flag, _)) => Err(format!("unknown flag {flag}")),
        }
    }
}

/// A whole program: reads its flags, runs it, prints what it gives. Exit status 1 for a failure, 2 for wrong flags.
pub fn program<S, R: Display, F: Display>(
    name: &str,
    settings: impl FnOnce(&mut Arguments) -> Result<S, String>,
    work: impl AsyncFnOnce(&S) -> Result<R, F>,
) -> ExitCode {
    let settings = Arguments::parse(std::env::args().skip(1)).and_then(|mut arguments| {
        let settings = settings(&mut arguments)?;
        arguments.finish().map(|()| settings)
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match (settings, runtime) {
        (Err(problem), _) => {
            eprintln!("{name}: {problem}");
            ExitCode::from(2)
        }
        (_, Err(problem)) => {
            eprintln!("{name}: no runtime: {problem}");
            ExitCode::from(2)
        }
        (Ok(settings), Ok(runtime)) => match runtime.block_on(work(&settings)) {
            Ok(report) => {
                print!("{report}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_have_values_and_unknown_ones_are_refused() {
        let words = ["--seed", "7", "--members=/a,/b", "--sever", "x"].map(str::to_owned);
        let mut arguments = Arguments::parse(words).expect("well formed");
        assert_eq!(arguments.number("--seed", 1), Ok(7));
        assert_eq!(arguments.number("--rounds", 100), Ok(100));
        assert_eq!(arguments.binaries("--members").map(|members| members.len()), Some(2));
        assert_eq!(arguments.finish(), Err("unknown flag --sever".to_owned()));
        assert!(Arguments::parse(["--seed".to_owned()]).is_err());
    }
}
