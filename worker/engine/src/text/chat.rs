//! Chats as ids: the checkpoint's Jinja template around what was said.

use std::{
    io,
    path::{Path, PathBuf},
};

use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;

use super::{
    added::Spans,
    grid::Grid,
    tokenizer::Tokenizer,
    tokenizer_config::{self, TokenizerConfig},
};
use crate::{
    Error, Result,
    files::{optional, read_text},
};

/// Qwen2.5's template without its tool branches, for checkpoints that bring none.
const DEFAULT_TEMPLATE: &str = "\
{%- if messages[0].role != 'system' %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}";

const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE: &str = "chat_template";
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// Instructions that a template may run: enough for any chat of [`MAX_MESSAGES`].
const FUEL: u64 = 2_000_000;
/// Characters that a template may write by itself, without what was said.
const MAX_RENDERED: usize = 16 << 20;

/// Messages of one chat.
pub const MAX_MESSAGES: usize = 4096;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions to the model.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order, without anything in between.
    pub content: Vec<Part>,
}

/// A piece of a message.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text; control tokens in it are ordinary characters.
    Text(String),
    /// A picture that has been tokenised.
    Picture {
        /// Its size in tokens.
        grid: Grid,
        /// Its image codes, row-major.
        codes: Vec<u32>,
    },
}

/// A checkpoint's chat template. Shared freely between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: PathBuf,
    names: [Option<String>; 3],
}

impl ChatTemplate {
    /// Reads the template of an X-Omni directory and tries it on a short chat. Without one,
    /// Qwen2.5's default is used. [`Error::Io`] and [`Error::Checkpoint`] name the file.
    pub fn open(dir: &Path) -> Result<Self> {
        let config = TokenizerConfig::open(dir)?;
        let separate = dir.join(TEMPLATE_FILE);
        let (file, source) = match optional(read_text(&separate, MAX_TEMPLATE_BYTES))? {
            Some(source) => (separate, source),
            None => {
                let source = config.chat_template().unwrap_or(DEFAULT_TEMPLATE);
                (dir.join(tokenizer_config::FILE), source.to_owned())
            }
        };
        if source.len() as u64 > MAX_TEMPLATE_BYTES {
            let reason = format!("larger than {MAX_TEMPLATE_BYTES} bytes");
            return Err(Error::checkpoint(&file, TEMPLATE, reason));
        }
        let mut environment = environment();
        environment
            .add_template_owned(TEMPLATE, source)
            .map_err(|e| Error::checkpoint(&file, TEMPLATE, describe(&e)))?;
        let names = [config.bos_token(), config.eos_token(), config.pad_token()];
        let template = Self {
            environment,
            file,
            names: names.map(|name| name.map(str::to_owned)),
        };
        template
            .fill(&[(Role::User, "?".to_owned())], true)
            .map_err(|e| Error::checkpoint(&template.file, TEMPLATE, e.to_string()))?;
        Ok(template)
    }

    /// The chat as one string, pictures written out. For people: [`ChatTemplate::encode`] is not
    /// the encoding of this string where a user wrote a control token.
    pub fn render(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String> {
        let turns: Vec<_> = messages
            .iter()
            .map(|message| {
                let parts = message.content.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Picture { grid, codes } => tokenizer.image_string(*grid, codes),
                });
                (message.role, parts.collect::<String>())
            })
            .collect();
        self.fill(&turns, add_generation_prompt)
    }

    /// The chat as ids. Only the template and the pictures contribute control and image tokens.
    /// [`Error::BadInput`] for what the template or the tokenizer refuses.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<u32>> {
        // The template sees private-use characters in place of what was said; it may trim, repeat
        // or drop them, but no content can be mistaken for the template's own text.
        let turns: Vec<_> = (0..messages.len()).map(placeholder).collect();
        let turns: Vec<_> = messages.iter().map(|m| m.role).zip(turns).collect();
        let text = self.fill(&turns, add_generation_prompt)?;

        let mut spans = Spans::default();
        let mut pieces = text.split(OPEN);
        tokenizer.split(pieces.next().unwrap_or_default(), &mut spans);
        for piece in pieces {
            let split = piece.split_once(CLOSE);
            let content = split.and_then(|(number, after)| {
                let message = messages.get(number.parse::<usize>().ok()?)?;
                Some((message, after))
            });
            let (message, after) = content.ok_or_else(|| {
                let reason = format!("uses U+{:04X} or takes contents apart", u32::from(OPEN));
                Error::checkpoint(&self.file, TEMPLATE, reason)
            })?;
            for part in &message.content {
                match part {
                    Part::Text(text) => spans.text(text),
                    Part::Picture { grid, codes } => {
                        tokenizer.picture(*grid, codes, &mut spans)?;
                    }
                }
            }
            tokenizer.split(after, &mut spans);
        }
        tokenizer.encode_spans("messages", &spans)
    }

    fn fill(&self, turns: &[(Role, String)], add_generation_prompt: bool) -> Result<String> {
        if turns.is_empty() || turns.len() > MAX_MESSAGES {
            let limit = format!("1 to {MAX_MESSAGES} messages");
            return Err(Error::bad_input("messages", limit, turns.len()));
        }
        let messages: Vec<Value> = turns
            .iter()
            .map(|(role, content)| context! { role => role, content => content })
            .collect();
        let [bos_token, eos_token, pad_token] = &self.names;
        let said: usize = turns.iter().map(|(_, content)| content.len()).sum();
        let mut output = Bounded {
            bytes: Vec::new(),
            limit: MAX_RENDERED.saturating_add(said),
        };
        let values = context! {
            messages, add_generation_prompt, bos_token, eos_token, pad_token,
        };
        let refuse = |e: minijinja::Error| match e.kind() {
            ErrorKind::InvalidOperation if e.detail().is_some_and(is_raised) => {
                Error::bad_input("messages", "a chat the template accepts", describe(&e))
            }
            _ => Error::checkpoint(&self.file, TEMPLATE, describe(&e)),
        };
        let template = self.environment.get_template(TEMPLATE).map_err(refuse)?;
        template
            .render_captured_to(values, &mut output)
            .map_err(refuse)?;
        String::from_utf8(output.bytes)
            .map_err(|e| Error::checkpoint(&self.file, TEMPLATE, e.to_string()))
    }
}

const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';
const RAISED: &str = "the template refuses: ";

fn placeholder(index: usize) -> String {
    format!("{OPEN}{index}{CLOSE}")
}

fn is_raised(detail: &str) -> bool {
    detail.starts_with(RAISED)
}

/// What Hugging Face's `apply_chat_template` offers to a template, within bounds.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| {
        let error =
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}"));
        Err::<Value, _>(error)
    });
    environment
}

/// Python's `json.dumps(value, ensure_ascii=False)`: no HTML escapes, spaces after `,` and `:`.
fn to_json(value: Value) -> Result<Value, minijinja::Error> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, PythonJson);
    value
        .serialize(&mut serializer)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Value::from_safe_string(text))
}

struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// A buffer that refuses to grow beyond its limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.bytes.len().saturating_add(data.len()) > self.limit {
            return Err(io::Error::other("the template writes too much"));
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})"));
    format!("{error}{}", line.unwrap_or_default())
}

#[cfg(test)]
mod tests;
