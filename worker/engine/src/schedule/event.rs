//! What the scheduler tells the owner of a request.

use super::request::RequestId;

/// Why an output ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// Its number of tokens is reached.
    Length,
    /// A stop token was drawn.
    Stop,
}

/// Why a request ended before its outputs did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortReason {
    /// Its owner cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The model's scores of a token were infinite or not numbers.
    NotFinite {
        /// Index of the output in the request.
        output: usize,
        /// Number of tokens before this one.
        n: u32,
    },
}

/// One thing that happened to a request, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An output got its slots and blocks; the next step planned is its first.
    Admitted {
        /// The request.
        request: RequestId,
        /// Index of the output in the request.
        output: usize,
    },
    /// A token was drawn.
    Token {
        /// The request.
        request: RequestId,
        /// Index of the output in the request.
        output: usize,
        /// Number of tokens before this one.
        n: u32,
        /// The token id.
        token: u32,
        /// Its natural log-probability, if the request wants it.
        log_prob: Option<f32>,
    },
    /// An output is complete. Its last token, a stop token included, was reported before.
    Finished {
        /// The request.
        request: RequestId,
        /// Index of the output in the request.
        output: usize,
        /// Why.
        reason: FinishReason,
    },
    /// The whole request ended early.
    Aborted {
        /// The request.
        request: RequestId,
        /// Why.
        reason: AbortReason,
    },
}
