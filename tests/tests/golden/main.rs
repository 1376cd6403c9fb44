//! One test a case of `tests/golden/README.md`, against the fixture of `XOMNI_GOLDEN`; those of X-Omni-nano always against what is shipped.

mod backbone;
mod decode;
mod document;
mod flow;
mod flux;
mod image_tokenizer;
mod nano;
mod sampling;
mod text_encoders;
mod tokenizer;
mod understanding;
mod vae;
