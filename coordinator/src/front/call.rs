//! The calls of clients: how they end, each once, and how a draining process waits for them.

use std::time::Instant;

use tokio::sync::watch;
use tonic::Code;

use super::failure::Failure;
use crate::metrics::Metrics;

/// What is done with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// New ones are taken.
    Serving,
    /// Those that run go on, new ones are refused.
    Draining,
    /// Those that still run are ended.
    Ended,
}

/// All calls of a process. Clones are the same.
#[derive(Debug, Clone)]
pub struct Calls {
    phase: watch::Sender<Phase>,
    running: watch::Sender<usize>,
    metrics: Metrics,
}

impl Calls {
    /// None yet.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            phase: watch::Sender::new(Phase::Serving),
            running: watch::Sender::new(0),
            metrics,
        }
    }

    /// A call begins.
    pub fn begin(&self) -> Call {
        self.running.send_modify(|running| *running += 1);
        Call {
            calls: self.clone(),
            start: Instant::now(),
            code: Code::Cancelled,
        }
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to another phase.
    pub fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// Waits until calls are to end. Cancel-safe.
    pub async fn ended(&self) {
        let mut phase = self.phase.subscribe();
        // The sender lives as long as `self`.
        let _ = phase.wait_for(|phase| *phase == Phase::Ended).await;
    }

    /// Waits until no call runs. Cancel-safe.
    pub async fn idle(&self) {
        let mut running = self.running.subscribe();
        // The sender lives as long as `self`.
        let _ = running.wait_for(|running| *running == 0).await;
    }
}

/// A call that runs. It is counted when it is dropped, as cancelled unless it [`Call::end`]s.
#[derive(Debug)]
pub struct Call {
    calls: Calls,
    start: Instant,
    code: Code,
}

impl Call {
    /// Ends with this status.
    pub fn end(mut self, code: Code) {
        self.code = code;
    }

    /// Ends with this failure, which is that of the current span's request.
    pub fn refuse(self, failure: Failure) -> Failure {
        failure.report();
        self.end(failure.code());
        failure
    }

    /// When it began.
    pub fn start(&self) -> Instant {
        self.start
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let metrics = &self.calls.metrics;
        metrics.requests(self.code).inc();
        metrics.seconds.observe(self.start.elapsed().as_secs_f64());
        self.calls.running.send_modify(|running| *running -= 1);
    }
}
