//! A headless Chromium, driven through WebDriver.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{Process, wait_for};

/// How long an answer of the driver may take.
const ANSWER: Duration = Duration::from_secs(60);
/// What Debian's package installs.
const CHROMIUM: &str = "/usr/bin/chromium";
/// Names the reference to an element in WebDriver's answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. It ends when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: String,
    session: String,
    _process: Process,
    _folder: TempDir,
}

impl Browser {
    /// Starts one that knows nothing of earlier ones, with an empty window.
    ///
    /// # Panics
    /// If Chromium or its driver is not installed (`deploy/dev/browser` does that) or does not
    /// start.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder for a browser");
        let program = driver_program();
        let program = program.to_str().expect("a path of text");
        let mut process = Process::start("driver", program, &["--port=0"], &[], folder.path());
        let port = process.wait_for_line("started successfully on port ");
        let driver = format!("127.0.0.1:{}", port.trim_end_matches('.'));
        let profile = folder.path().join("profile");
        let arguments = [
            "--headless".to_owned(),
            "--no-sandbox".into(),
            "--disable-gpu".into(),
            "--disable-quic".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-background-networking".into(),
            "--disable-component-update".into(),
            "--disable-sync".into(),
            "--no-first-run".into(),
            format!("--user-data-dir={}", profile.display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"binary": CHROMIUM, "args": arguments},
        }}});
        let begun = call(&driver, "POST", "/session", &wanted);
        let session = begun["sessionId"].as_str().expect("a session").to_owned();
        Self {
            driver,
            session,
            _process: process,
            _folder: folder,
        }
    }

    /// Goes to a page and waits until it is loaded.
    pub fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url }));
    }

    /// Types into what a CSS selector finds, in place of what stands there.
    pub fn fill(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.command("POST", &format!("/element/{element}/clear"), &json!({}));
        let text = json!({ "text": text });
        self.command("POST", &format!("/element/{element}/value"), &text);
    }

    /// Clicks on what a CSS selector finds.
    pub fn click(&self, selector: &str) {
        let element = self.find(selector);
        self.command("POST", &format!("/element/{element}/click"), &json!({}));
    }

    /// What the body of a function returns in the page, once a promise of it is kept.
    pub fn evaluate(&self, script: &str) -> Value {
        let script = json!({ "script": script, "args": [] });
        self.command("POST", "/execute/sync", &script)
    }

    /// Waits until an expression is true in the page.
    ///
    /// # Panics
    /// If it is not in time.
    pub fn wait_until(&self, expression: &str) {
        let script = format!("return Boolean({expression})");
        wait_for(expression, || {
            (self.evaluate(&script) == true).then_some(())
        });
    }

    /// The errors that the page has logged since this was asked last.
    pub fn errors(&self) -> Vec<String> {
        let log = self.command("POST", "/se/log", &json!({ "type": "browser" }));
        let log = log.as_array().expect("a log").iter();
        let severe = log.filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].to_string()).collect()
    }

    fn find(&self, selector: &str) -> String {
        let how = json!({ "using": "css selector", "value": selector });
        let found = self.command("POST", "/element", &how);
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Value {
        let path = format!("/session/{}{path}", self.session);
        call(&self.driver, method, &path, body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver ends the browser with the session; nobody else would.
        let path = format!("/session/{}", self.session);
        let _ = exchange(&self.driver, "DELETE", &path, "");
    }
}

fn driver_program() -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths)
        .map(|folder| folder.join("chromedriver"))
        .find(|path| path.is_file());
    assert!(Path::new(CHROMIUM).is_file(), "run deploy/dev/browser");
    found.expect("chromedriver is installed: run deploy/dev/browser")
}

/// What the driver answers to a command.
fn call(driver: &str, method: &str, path: &str, body: &Value) -> Value {
    let answer = exchange(driver, method, path, &body.to_string()).expect("an answer");
    let mut answer: Value = serde_json::from_str(&answer).expect("JSON");
    let value = answer["value"].take();
    assert!(value["error"].is_null(), "{method} {path}: {value}");
    value
}

/// The body of an answer, on a connection of its own, which the driver leaves open.
fn exchange(driver: &str, method: &str, path: &str, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(driver)?;
    stream.set_read_timeout(Some(ANSWER))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {driver}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = BufReader::new(stream);
    let mut length = 0;
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    String::from_utf8(body).map_err(std::io::Error::other)
}
