//! Text in and out: the backbone's tokenizer, text from tokens as they are drawn, the chat template,
//! the document grammar, and the tokenizers of the decoder's two text encoders.

mod added;
mod alphabet;
mod bpe;
mod charsmap;
pub mod chat;
pub mod clip;
mod detokenizer;
pub mod document;
pub mod grid;
mod stop;
pub mod t5;
pub mod tokenizer;
mod tokenizer_config;
mod tokenizer_file;

#[cfg(test)]
mod testing;

pub use chat::{ChatTemplate, Message, Part, Role};
pub use clip::ClipTokenizer;
pub use detokenizer::Detokenizer;
pub use document::{Document, ImageCall};
pub use grid::Grid;
pub use stop::StopStrings;
pub use t5::T5Tokenizer;
pub use tokenizer::Tokenizer;
