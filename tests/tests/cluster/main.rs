//! A cluster of real processes draws what one process draws, whatever is lost, full or ended
//! meanwhile.

mod chat;
mod drain;
mod drawing;
mod etcd;
mod groups;
mod load;
mod versions;

use xomni_proto::images::GenerateImagesRequest;
use xomni_tests::drawing::request;

const PROMPT: &str =
    "a large red star above two blue circles on a cream background, and \"XOMNI\" at the bottom";

/// Tokens of a picture that is soon done.
const FEW_TOKENS: u32 = 8 * 8;

/// A request for one.
fn short() -> GenerateImagesRequest {
    request(PROMPT, "128x128")
}

/// Pictures of one request that takes a while.
const PICTURES: u32 = 4;
/// Tokens of each.
const TOKENS: u32 = 12 * 12;

/// A request that takes a while.
fn long() -> GenerateImagesRequest {
    GenerateImagesRequest {
        n: Some(PICTURES),
        ..request(PROMPT, "192x192")
    }
}
