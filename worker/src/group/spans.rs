//! The spans of the ranks of a process: one for each of them and each output that they run.

use std::{collections::HashMap, ops::Range};

use tracing::{Span, field, info_span};

use crate::{
    backbone::{OutputId, Traces},
    telemetry,
};

/// The open spans of some ranks in one epoch. Those that are open when it is dropped have failed.
#[derive(Debug)]
pub(super) struct RankSpans {
    ranks: Range<usize>,
    /// Outputs that can run at once.
    most: usize,
    open: HashMap<OutputId, Vec<Span>>,
}

impl RankSpans {
    /// Spans of `ranks`, for at most `most` outputs at once.
    pub fn new(ranks: Range<usize>, most: usize) -> Self {
        Self {
            ranks,
            most,
            open: HashMap::new(),
        }
    }

    /// Outputs begin and cease to run.
    pub fn change(&mut self, traces: &Traces) {
        for id in &traces.ended {
            self.open.remove(id);
        }
        for output in &traces.begun {
            if self.open.len() >= self.most {
                return;
            }
            let span = |rank| {
                let image = output.image_index;
                let span = info_span!(parent: None, "rank", rank, image, trace_id = field::Empty);
                output.parent.adopt(&span);
                span
            };
            let spans = self.ranks.clone().map(span).collect();
            self.open.insert(output.id, spans);
        }
    }
}

impl Drop for RankSpans {
    fn drop(&mut self) {
        for span in self.open.values().flatten() {
            telemetry::fail(span, "the epoch has ended");
        }
    }
}
