//! A terminal of 100 columns and 40 rows with a person's shell in it.

use std::{
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Instant,
};

use image::RgbImage;
use xomni_tests::process::{PATIENCE, binary};

/// What asks for the primary device attributes; other questions come before it.
const QUESTION: &[u8] = b"\x1b[c";
const PROMPT: &str = "A navy poster with a yellow star in the center and the text \"HELLO\"";

/// What a terminal is.
#[derive(Debug)]
pub struct Emulator {
    answer: Option<String>,
    kind: &'static str,
}

/// What was sent to a terminal, and the file.
#[derive(Debug)]
pub struct Shown {
    pub bytes: Vec<u8>,
    pub png: Vec<u8>,
}

impl Shown {
    /// The bytes as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The saved picture.
    pub fn picture(&self) -> RgbImage {
        let picture = image::load_from_memory(&self.png);
        picture.expect("a PNG").into_rgb8()
    }
}

impl Emulator {
    /// One that answers nothing.
    pub fn new() -> Self {
        Self {
            answer: None,
            kind: "xterm-256color",
        }
    }

    /// What it answers to [`QUESTION`] and those before.
    pub fn answering(mut self, answer: &str) -> Self {
        self.answer = Some(answer.to_owned());
        self
    }

    /// What `TERM` says.
    pub fn of_kind(mut self, kind: &'static str) -> Self {
        self.kind = kind;
        self
    }

    /// Draws one picture of 64 by 48 pixels.
    pub fn generate(&self) -> Shown {
        let folder = tempfile::tempdir().expect("folder");
        // `script` runs it on a pseudo-terminal, whose other end are its pipes.
        let command = format!(
            "stty rows 40 cols 100; exec '{}' generate '{PROMPT}' --size 64x48 --num-inference-steps 1 --seed 7 -o out.png",
            binary("xomni").display()
        );
        let mut script = Command::new("script")
            .args(["-qec", &command, "/dev/null"])
            .current_dir(folder.path())
            .env("SHELL", "/bin/sh")
            .env("TERM", self.kind)
            .env("COLORTERM", "truecolor")
            .env_remove("TERM_PROGRAM")
            .env_remove("LC_TERMINAL")
            .env_remove("KONSOLE_VERSION")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script runs");
        let mut keyboard = script.stdin.take().expect("stdin");
        let mut screen = script.stdout.take().expect("stdout");
        let (sender, receiver) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = screen.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let (mut bytes, mut answered) = (vec![], false);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(part) => bytes.extend(part),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    script.kill().expect("killed");
                    panic!("no end after {:?}", String::from_utf8_lossy(&bytes));
                }
            }
            let asked = bytes.windows(QUESTION.len()).any(|part| part == QUESTION);
            if let Some(answer) = &self.answer
                && asked
                && !answered
            {
                keyboard.write_all(answer.as_bytes()).expect("answered");
                keyboard.flush().expect("answered");
                answered = true;
            }
        }
        reader.join().expect("reader");
        let status = script.wait().expect("ends");
        let text = String::from_utf8_lossy(&bytes);
        assert!(status.success(), "{status}: {text:?}");
        assert_eq!(answered, self.answer.is_some(), "{text:?}");
        if let Some(answer) = &self.answer {
            let echo = answer.replace('\x1b', "^[");
            assert!(!text.contains(&echo), "its answer is on the screen");
        }
        let png = fs::read(folder.path().join("out.png")).expect("picture");
        Shown { bytes, png }
    }
}
