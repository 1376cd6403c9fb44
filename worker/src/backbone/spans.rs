//! The spans of a job on its way through the backbone: for each output its time in the queue, its
//! prefill and its decode. Nothing is done for a token or for a step.

use tracing::{Span, info_span};
use xomni_engine::{
    Error,
    schedule::{OutputSpec, RequestId},
};

use crate::telemetry::{self, TraceParent};

/// Names an output that runs: its request, as the scheduler knows it, and its index there.
pub type OutputId = (RequestId, usize);

/// An output that the ranks begin to run, and whose trace is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TracedOutput {
    /// The output.
    pub id: OutputId,
    /// Index of the image within its request.
    pub image_index: u32,
    /// The span of its job.
    pub parent: TraceParent,
}

/// Outputs that the ranks begin and cease to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Those that begin.
    pub begun: Vec<TracedOutput>,
    /// Those that have ended; ids are not used again.
    pub ended: Vec<OutputId>,
}

impl Traces {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.ended.is_empty()
    }
}

/// Where an output is, as a span that is open as long.
#[derive(Debug)]
enum Part {
    Queue(Span),
    Prefill(Span),
    Decode(Span),
    Ended,
}

/// The spans of a job.
#[derive(Debug)]
pub(super) struct JobSpans {
    id: RequestId,
    job: Span,
    outputs: Vec<(u32, Part)>,
}

impl JobSpans {
    /// A job in the queue, whose work is part of `job`.
    pub fn new(id: RequestId, job: Span, outputs: &[OutputSpec]) -> Self {
        let queued = |output: &OutputSpec| {
            let image = output.image_index;
            let span = info_span!(parent: &job, "queue", image);
            (image, Part::Queue(span))
        };
        Self {
            outputs: outputs.iter().map(queued).collect(),
            id,
            job,
        }
    }

    /// An output begins to run.
    pub fn admitted(&mut self, output: usize, traces: &mut Traces) {
        let Some((image, part)) = self.outputs.get_mut(output) else {
            return;
        };
        *part = Part::Prefill(info_span!(parent: &self.job, "prefill", image = *image));
        let traced = TraceParent::of(&self.job).map(|parent| TracedOutput {
            id: (self.id, output),
            image_index: *image,
            parent,
        });
        traces.begun.extend(traced);
    }

    /// A token of an output was drawn.
    pub fn drawn(&mut self, output: usize) {
        if let Some((image, part @ Part::Prefill(_))) = self.outputs.get_mut(output) {
            *part = Part::Decode(info_span!(parent: &self.job, "decode", image = *image));
        }
    }

    /// An output is complete.
    pub fn finished(&mut self, output: usize, traces: &mut Traces) {
        self.end(output, None, traces);
    }

    /// Whatever has not ended fails.
    pub fn failed(&mut self, error: &Error, traces: &mut Traces) {
        for output in 0..self.outputs.len() {
            self.end(output, Some(error), traces);
        }
    }

    fn end(&mut self, output: usize, error: Option<&Error>, traces: &mut Traces) {
        let Some((_, part)) = self.outputs.get_mut(output) else {
            return;
        };
        let (span, ran) = match std::mem::replace(part, Part::Ended) {
            Part::Queue(span) => (span, false),
            Part::Prefill(span) | Part::Decode(span) => (span, true),
            Part::Ended => return,
        };
        if let Some(error) = error {
            telemetry::fail(&span, error);
        }
        if ran {
            traces.ended.push((self.id, output));
        }
    }
}
