//! An answer that is written once and read by many, also while it is written.

use std::{
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode},
    response::Response,
};
use futures_util::stream;
use http_body_util::BodyExt;
use tokio::sync::watch;

use crate::front::http::problem::Problem;

/// Put into an answer's extensions by whoever may still fail after its head is sent.
#[derive(Debug, Clone, Default)]
pub struct Spoilt(Arc<AtomicBool>);

impl Spoilt {
    /// The answer is not worth keeping.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is written so far.
#[derive(Debug, Default)]
struct Written {
    head: Option<(StatusCode, HeaderMap, Option<Problem>)>,
    pieces: Vec<Bytes>,
    end: Option<End>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    Broken,
}

/// An answer that can be read.
#[derive(Debug)]
pub struct Log {
    written: watch::Receiver<Written>,
    /// Lives as long as there are readers.
    readers: Weak<watch::Receiver<()>>,
}

/// Writes an answer as long as someone reads it.
#[derive(Debug)]
pub struct Recorder {
    written: watch::Sender<Written>,
    readers: watch::Sender<()>,
}

/// Reads an answer from its beginning.
#[derive(Debug)]
pub struct Reader {
    written: watch::Receiver<Written>,
    next: usize,
    _readers: Option<Arc<watch::Receiver<()>>>,
}

/// A new answer, who writes it, and its first reader.
pub fn begin() -> (Log, Recorder, Reader) {
    let (writer, written) = watch::channel(Written::default());
    let (alive, readers) = watch::channel(());
    let readers = Arc::new(readers);
    let log = Log {
        written: written.clone(),
        readers: Arc::downgrade(&readers),
    };
    let recorder = Recorder {
        written: writer,
        readers: alive,
    };
    let reader = Reader {
        written,
        next: 0,
        _readers: Some(readers),
    };
    (log, recorder, reader)
}

impl Log {
    /// Another reader; `None` if the answer was given up, or broke off.
    pub fn read(&self) -> Option<Reader> {
        let readers = self.readers.upgrade();
        let end = self.written.borrow().end;
        if end == Some(End::Broken) || (end.is_none() && readers.is_none()) {
            return None;
        }
        Some(Reader {
            written: self.written.clone(),
            next: 0,
            _readers: readers,
        })
    }
}

impl Recorder {
    /// Records an answer; returns its size if it is worth keeping.
    pub async fn record(self, answer: impl Future<Output = Response>) -> Option<usize> {
        let end = tokio::select! {
            biased;
            () = self.readers.closed() => None,
            size = self.write(answer) => size,
        };
        let whole = end.is_some();
        self.written.send_modify(|written| {
            written
                .end
                .get_or_insert(if whole { End::Whole } else { End::Broken });
        });
        end
    }

    async fn write(&self, answer: impl Future<Output = Response>) -> Option<usize> {
        let (mut parts, mut body) = answer.await.into_parts();
        let spoilt = parts.extensions.remove::<Spoilt>().unwrap_or_default();
        let problem = parts.extensions.remove::<Problem>();
        let fine = parts.status.is_success();
        let head = (parts.status, parts.headers, problem);
        self.written
            .send_modify(|written| written.head = Some(head));
        let mut size = 0;
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame.ok()?.into_data() else {
                continue;
            };
            size += piece.len();
            self.written
                .send_modify(|written| written.pieces.push(piece));
        }
        if fine && !spoilt.get() {
            return Some(size);
        }
        // Those who read along get all of it.
        self.written
            .send_modify(|written| written.end = Some(End::Whole));
        None
    }
}

impl Reader {
    /// The answer, whose body comes as it is written.
    ///
    /// # Errors
    /// [`Problem::lost`] if it breaks off before it begins.
    pub async fn response(mut self) -> Result<Response, Problem> {
        let begun = |written: &Written| written.head.is_some() || written.end.is_some();
        let head = match self.written.wait_for(begun).await {
            Ok(written) => written.head.clone(),
            Err(_) => None,
        };
        let (status, headers, problem) = head.ok_or_else(Problem::lost)?;
        let body = stream::unfold(self, |mut reader| async move {
            let piece = reader.piece().await?;
            Some((piece, reader))
        });
        let mut response = Response::new(Body::from_stream(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if let Some(problem) = problem {
            response.extensions_mut().insert(problem);
        }
        Ok(response)
    }

    /// The next piece; `None` at the end.
    async fn piece(&mut self) -> Option<std::io::Result<Bytes>> {
        let next = self.next;
        let more = |written: &Written| written.pieces.len() > next || written.end.is_some();
        let broken = || Some(Err(std::io::ErrorKind::ConnectionAborted.into()));
        let Ok(written) = self.written.wait_for(more).await else {
            return broken();
        };
        match (written.pieces.get(next).cloned(), written.end) {
            (Some(piece), _) => {
                drop(written);
                self.next += 1;
                Some(Ok(piece))
            }
            (None, Some(End::Whole)) => None,
            (None, _) => broken(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    async fn text(reader: Reader) -> String {
        let response = reader.response().await.expect("a head");
        let body = response.into_body().collect().await.expect("a body");
        String::from_utf8(body.to_bytes().to_vec()).expect("text")
    }

    #[tokio::test]
    async fn readers_read_along_and_again() {
        let (log, recorder, first) = begin();
        let (pieces, receiver) = mpsc::channel::<std::io::Result<&'static str>>(4);
        let answer =
            async move { Body::from_stream(ReceiverStream::new(receiver)).into_response() };
        let recording = tokio::spawn(recorder.record(answer));
        pieces.send(Ok("a")).await.expect("recorded");
        let second = log.read().expect("still written");
        let reading = tokio::spawn(text(second));
        pieces.send(Ok("b")).await.expect("recorded");
        drop(pieces);
        assert_eq!(recording.await.expect("no panic"), Some(2));
        assert_eq!(text(first).await, "ab");
        assert_eq!(reading.await.expect("no panic"), "ab");
        assert_eq!(text(log.read().expect("kept")).await, "ab");
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_made() {
        let (log, recorder, reader) = begin();
        let recording = tokio::spawn(recorder.record(std::future::pending()));
        drop(reader);
        assert_eq!(recording.await.expect("no panic"), None);
        assert!(log.read().is_none());
    }

    #[tokio::test]
    async fn failures_are_read_along_but_not_kept() {
        let (_, recorder, reader) = begin();
        let spoilt = Spoilt::default();
        let answer = async {
            let mut answer = "event: error\n\n".into_response();
            answer.extensions_mut().insert(spoilt.clone());
            spoilt.set();
            answer
        };
        let (kept, read) = tokio::join!(recorder.record(answer), text(reader));
        assert_eq!((kept, read.as_str()), (None, "event: error\n\n"));
        let (_, recorder, reader) = begin();
        let answer = async { (StatusCode::BAD_REQUEST, "no").into_response() };
        let (kept, read) = tokio::join!(recorder.record(answer), text(reader));
        assert_eq!((kept, read.as_str()), (None, "no"));
    }
}
