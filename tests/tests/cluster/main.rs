//! A cluster of real processes draws what one process draws, whatever is lost, full or ended
//! meanwhile.

mod chat;
mod drain;
mod drawing;
mod etcd;
mod groups;
mod load;
mod versions;

/// A prompt whose picture takes a while, at this size.
const PROMPT: &str = "a lighthouse at night";
const LONG: &str = "512x384";
