//! What is typed and what is shown.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

use crate::error::CliError;

/// What shows a picture with the next message.
const IMAGE: &str = "/image ";

/// One line of the input.
#[derive(Debug, PartialEq, Eq)]
pub enum Line {
    /// Something said.
    Text(String),
    /// A picture to show with what is said next.
    Picture(PathBuf),
}

/// Lines of standard input, asked for where it is a terminal.
pub struct Input {
    interactive: bool,
}

impl Input {
    /// Says how to use it, where somebody types.
    pub fn open() -> Self {
        let interactive = io::stdin().is_terminal();
        if interactive {
            eprintln!("{IMAGE}FILE shows a picture with the next message; Ctrl-D ends");
        }
        Self { interactive }
    }

    /// The next line that says something; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Line>, CliError> {
        loop {
            if self.interactive {
                show("> ");
            }
            let read = || {
                let mut line = String::new();
                io::stdin().lock().read_line(&mut line).map(|_| line)
            };
            let line = tokio::task::spawn_blocking(read).await?;
            let line = line.map_err(CliError::file("standard input"))?;
            if line.is_empty() {
                return Ok(None);
            }
            if let Some(line) = parse(&line) {
                return Ok(Some(line));
            }
        }
    }

    /// Shows an error to somebody who can try again; ends with it otherwise.
    pub fn complain(&self, error: CliError) -> Result<(), CliError> {
        if !self.interactive {
            return Err(error);
        }
        eprintln!("error: {error}");
        Ok(())
    }
}

fn parse(line: &str) -> Option<Line> {
    let line = line.trim();
    match line.strip_prefix(IMAGE) {
        Some(path) => Some(Line::Picture(path.trim().into())),
        None if line.is_empty() => None,
        None => Some(Line::Text(line.to_owned())),
    }
}

/// Writes text at once. On a terminal, control characters that a model writes are not obeyed.
pub fn show(text: &str) {
    let mut output = io::stdout();
    let text = match output.is_terminal() {
        true => printable(text),
        false => text.to_owned(),
    };
    // Who closed the output does not want to know.
    let _ = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
}

fn printable(text: &str) -> String {
    let shown = |character: char| match character {
        '\n' | '\t' => character,
        other if other.is_control() => char::REPLACEMENT_CHARACTER,
        other => other,
    };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_said_or_shown() {
        assert_eq!(parse(" hello \n"), Some(Line::Text("hello".into())));
        assert_eq!(
            parse("/image a b.png\n"),
            Some(Line::Picture("a b.png".into()))
        );
        assert_eq!(parse(" \n"), None);
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        assert_eq!(printable("a\u{1b}[2J\r\nb\t"), "a\u{fffd}[2J\u{fffd}\nb\t");
    }
}
