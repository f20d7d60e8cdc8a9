//! The commands of a document.

/// A command and what it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the document, from 1.
    pub line: usize,
    /// On which host it is typed, as in its prompt: `node1$ ` is host 0.
    pub host: usize,
    /// What is typed, lines that end in a backslash joined by line ends.
    pub command: String,
    /// What is shown below it.
    pub shown: Vec<String>,
}

/// Finds the commands in blocks marked `console` whose prompts name a host.
pub fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut is_console, mut goes_on) = (false, false);
    for (number, line) in document.lines().enumerate() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if !is_console {
        } else if goes_on && let Some(step) = steps.last_mut() {
            step.command.push('\n');
            step.command.push_str(line);
            goes_on = line.ends_with('\\');
        } else if let Some((host, command)) = prompt(line) {
            steps.push(Step { line: number + 1, host, command: command.to_owned(), shown: Vec::new() });
            goes_on = line.ends_with('\\');
        } else if let Some(step) = steps.last_mut() {
            step.shown.push(line.to_owned());
        }
    }
    steps
}

fn prompt(line: &str) -> Option<(usize, &str)> {
    let (host, command) = line.strip_prefix("node")?.split_once("$ ")?;
    Some((host.parse::<usize>().ok()?.checked_sub(1)?, command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_with_what_they_show() {
        let document = "text\n```sh\nnode1$ not this\n```\n```console\nnode2$ a \\\n  b\none\n\ntwo\nnode1$ c\n```\nnode1$ nor this\n";
        let step = |line, host, command: &str, shown: &[&str]| Step {
            line,
            host,
            command: command.into(),
            shown: shown.iter().map(|line| line.to_string()).collect(),
        };
        assert_eq!(steps(document), [step(6, 1, "a \\\n  b", &["one", "", "two"]), step(11, 0, "c", &[])]);
    }
}
