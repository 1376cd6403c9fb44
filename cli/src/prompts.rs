//! Prompts from a file: one JSON object a line, with a string field `prompt`.

use std::path::Path;

use serde::Deserialize;

use crate::error::CliError;

#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// The prompts of a JSONL file; blank lines are skipped.
pub fn read(path: &Path) -> Result<Vec<String>, CliError> {
    let text = std::fs::read_to_string(path).map_err(CliError::file(path))?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    let prompts = lines.map(|(number, line)| {
        serde_json::from_str(line)
            .map(|Line { prompt }| prompt)
            .map_err(|error| {
                CliError::Argument(format!("{}:{}: {error}", path.display(), number + 1))
            })
    });
    let prompts: Vec<String> = prompts.collect::<Result<_, _>>()?;
    if prompts.is_empty() {
        return Err(CliError::Argument(format!(
            "{}: no prompts",
            path.display()
        )));
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(text.as_bytes()).expect("write");
        file
    }

    #[test]
    fn reads_one_prompt_a_line() {
        let file = file("{\"prompt\": \"a\", \"id\": 1}\n\n{\"prompt\": \"b\"}\n");
        assert_eq!(read(file.path()).expect("valid"), ["a", "b"]);
    }

    #[test]
    fn names_the_line_of_an_error() {
        let file = file("{\"prompt\": \"a\"}\n{\"text\": 1}\n");
        let error = read(file.path()).expect_err("no prompt").to_string();
        assert!(error.contains(":2: missing field `prompt`"), "{error}");
    }
}
