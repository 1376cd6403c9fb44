//! Text in and out: the backbone's tokenizer, the chat template, the document grammar, and the
//! tokenizers of the decoder's two text encoders.

pub mod chat;
pub mod clip;
pub mod document;
pub mod t5;
pub mod tokenizer;
