//! What a chat may hold.

use xomni_engine::{
    Error, Result,
    checkpoint::{GenerationConfig, XOmniConfig, config::TransformConfig},
    picture::preprocess,
    sampling::SamplingParams,
    text::{Grid, Role, chat::MAX_MESSAGES},
};

use super::{ChatMessage, Content, pictures};

/// Largest picture file, in bytes.
pub const MAX_PICTURE_BYTES: usize = 20 << 20;

/// Limits and defaults of chats with a served model.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatLimits {
    /// Longest text of all messages together, in bytes: more than any prompt has room for, and
    /// tokenised in a moment.
    pub max_text_bytes: usize,
    /// Most pictures of one request.
    pub max_pictures: usize,
    /// Largest picture file, in bytes.
    pub max_picture_bytes: usize,
    /// Most answers to one request.
    pub max_choices: usize,
    /// Most stop strings.
    pub max_stops: usize,
    /// Longest stop string, in characters.
    pub max_stop_chars: usize,
    /// Prompt and answer together, in tokens.
    pub max_positions: usize,
    /// Longest answer where no length is given, in tokens: the published script's.
    pub default_max_tokens: usize,
    /// How pictures are sized before they are read.
    pub transform: TransformConfig,
    /// Sampling where only a temperature is given; where none is, answers are greedy.
    pub sampling: SamplingParams,
    /// Tokens that end an answer.
    pub stop_ids: Vec<u32>,
}

impl ChatLimits {
    /// The limits of a checkpoint; `end_of_turn` is the token that ends a turn of its chats.
    pub fn new(config: &XOmniConfig, generation: &GenerationConfig, end_of_turn: u32) -> Self {
        let mut stop_ids = generation.stop_ids.clone();
        if !stop_ids.contains(&end_of_turn) {
            stop_ids.push(end_of_turn);
        }
        Self {
            max_text_bytes: 1 << 20,
            max_pictures: 16,
            max_picture_bytes: MAX_PICTURE_BYTES,
            max_choices: 10,
            max_stops: 16,
            max_stop_chars: 256,
            max_positions: config.backbone.max_positions,
            default_max_tokens: 512,
            transform: config.transform.clone(),
            // The published script passes its min-p where it draws, not where it answers.
            sampling: SamplingParams {
                temperature: 0.0,
                min_p: 0.0,
                ..generation.sampling()
            },
            stop_ids,
        }
    }

    pub(super) fn check_text(&self, messages: &[ChatMessage]) -> Result<()> {
        let content = messages.iter().flat_map(|message| &message.content);
        let lengths = content.map(|part| match part {
            Content::Text(text) => text.len(),
            Content::Picture(_) => 0,
        });
        let bytes: usize = lengths.sum();
        if bytes > self.max_text_bytes {
            let limit = format!("must be at most {} bytes of text", self.max_text_bytes);
            return Err(Error::bad_input("messages", limit, bytes));
        }
        Ok(())
    }

    pub(super) fn check_stop(&self, stop: &[String]) -> Result<()> {
        let refuse = |limit: String, value: String| Err(Error::bad_input("stop", limit, value));
        if stop.len() > self.max_stops {
            let limit = format!("must be at most {} strings", self.max_stops);
            return refuse(limit, stop.len().to_string());
        }
        for stop in stop {
            let chars = stop.chars().count();
            if !(1..=self.max_stop_chars).contains(&chars) {
                let limit = format!("strings must be 1 to {} characters", self.max_stop_chars);
                return refuse(limit, format!("{chars} characters"));
            }
        }
        Ok(())
    }

    /// The sizes in tokens of all pictures, from their headers.
    pub(super) fn grids(&self, messages: &[ChatMessage]) -> Result<Vec<Grid>> {
        let count = pictures(messages).count();
        if count > self.max_pictures {
            let limit = format!("must be at most {} pictures", self.max_pictures);
            return Err(Error::bad_input("image", limit, count));
        }
        pictures(messages)
            .map(|picture| {
                if picture.len() > self.max_picture_bytes {
                    let limit = format!("must be at most {} bytes", self.max_picture_bytes);
                    return Err(Error::bad_input("image", limit, picture.len()));
                }
                preprocess::grid(picture, &self.transform)
            })
            .collect()
    }

    /// The longest answer to a prompt of so many tokens.
    pub(super) fn max_tokens(&self, prompt: usize, asked: Option<usize>) -> Result<usize> {
        let most = self.max_positions;
        let room = most.saturating_sub(prompt);
        if room == 0 {
            let limit = format!("must be fewer than {most} tokens");
            return Err(Error::bad_input(
                "messages",
                limit,
                format!("{prompt} tokens"),
            ));
        }
        match asked {
            None => Ok(room.min(self.default_max_tokens)),
            Some(asked) if (1..=room).contains(&asked) => Ok(asked),
            Some(asked) => {
                let limit = format!(
                    "must be 1 to {room}: messages of {prompt} tokens and their answer must be at \
                     most {most} tokens"
                );
                Err(Error::bad_input("max_tokens", limit, asked))
            }
        }
    }
}

/// Refuses a chat without messages, messages without content, and pictures that no user sent.
pub(super) fn check_messages(messages: &[ChatMessage]) -> Result<()> {
    let refuse = |limit: String, value: String| Err(Error::bad_input("messages", limit, value));
    if !(1..=MAX_MESSAGES).contains(&messages.len()) {
        let limit = format!("must be 1 to {MAX_MESSAGES} messages");
        return refuse(limit, messages.len().to_string());
    }
    for (index, message) in messages.iter().enumerate() {
        let says = |part: &Content| match part {
            Content::Text(text) => !text.trim().is_empty(),
            Content::Picture(_) => true,
        };
        let pictures = pictures(std::slice::from_ref(message)).count();
        let value = format!("messages[{index}] of role {:?}", message.role);
        if message.content.is_empty()
            || (message.role == Role::User && !message.content.iter().any(says))
        {
            return refuse("must have content".into(), value.to_lowercase());
        }
        if message.role != Role::User && pictures > 0 {
            return refuse(
                "pictures belong to user messages".into(),
                value.to_lowercase(),
            );
        }
    }
    Ok(())
}
