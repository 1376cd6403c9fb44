//! The page at `/` in a browser.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use xomni_coordinator::front::access::{Access, Record};
use xomni_tests::{
    browser::Browser,
    coordinator::{Cluster, ROOMY},
    http::Client,
};

const PROMPT: &str = "a red fox";
const SIZE: &str = "96x64";
const SEED: u64 = 7;

/// Counts the pictures that are shown while one is drawn.
const COUNT: &str = "window.shown = new Set(); new MutationObserver(() => {
    for (const image of document.querySelectorAll('#easel img')) window.shown.add(image.src);
}).observe(document.getElementById('easel'), { subtree: true, childList: true, attributes: true });";

/// The bytes of the picture that is done, in base64.
const PICTURE: &str = "const picture = document.querySelector('figure.done img').src;
    const bytes = new Uint8Array(await (await fetch(picture)).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(''));";

fn promised(script: &str) -> String {
    format!("return (async () => {{ {script} }})()")
}

async fn open(cluster: &Cluster) -> Browser {
    let browser = Browser::start();
    browser.open(&format!("http://{}/", cluster.address));
    browser
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_is_drawn_as_the_api_draws_it() {
    let cluster = Cluster::start(1, ROOMY).await;
    let browser = open(&cluster).await;
    browser.wait_until("document.querySelector('#cluster .ready')");
    let known = browser.evaluate("return document.getElementById('cluster').innerText");
    for part in ["Coordinator", "Group", "Decoder 1"] {
        assert!(known.as_str().expect("text").contains(part), "{known}");
    }
    browser.evaluate(COUNT);
    browser.fill("#prompt", PROMPT);
    browser.fill("[name=size]", SIZE);
    browser.fill("[name=seed]", &SEED.to_string());
    browser.fill("[name=partial_images]", "1");
    // Of 24 tokens, a preview falls due with 12; it is waited for.
    let most = &cluster.workers[0].most;
    most.send_replace(14);
    browser.click("#draw");
    browser.wait_until("window.shown.size === 1");
    most.send_replace(usize::MAX);
    browser.wait_until("document.querySelector('figure.done img')?.naturalWidth === 96");
    browser.wait_until("window.shown.size === 2");
    let shown = browser.evaluate(&promised(PICTURE));
    let shown = BASE64_STANDARD
        .decode(shown.as_str().expect("base64"))
        .expect("base64");

    let body = json!({"prompt": PROMPT, "size": SIZE, "seed": SEED});
    let answer = Client::new(cluster.address)
        .post("/v1/images/generations", &body)
        .await;
    let drawn = answer.json()["data"][0]["b64_json"].take();
    let drawn = BASE64_STANDARD
        .decode(drawn.as_str().expect("base64"))
        .expect("base64");
    assert!(shown == drawn, "the same bytes");

    browser.wait_until("document.querySelectorAll('#pictures img').length === 1");
    browser.open(&format!("http://{}/", cluster.address));
    browser.wait_until("document.querySelectorAll('#pictures img').length === 1");
    assert_eq!(browser.errors(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_and_drawing_can_be_stopped() {
    let cluster = Cluster::start(1, ROOMY).await;
    let browser = open(&cluster).await;
    browser.fill("#prompt", PROMPT);
    browser.fill("[name=size]", "60x64");
    browser.click("#draw");
    browser.wait_until("document.getElementById('error').textContent.includes('size')");
    browser.fill("[name=size]", "256x256");
    browser.click("#draw");
    browser.wait_until("document.querySelector('#easel progress')?.value > 0");
    browser.click("#stop");
    browser.wait_until("document.getElementById('status').textContent === 'Stopped.'");
    cluster.idle().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_a_key_gives_it_once() {
    let (key, record) = Record::generate("alice".into()).expect("random numbers");
    let line = serde_json::to_string(&record).expect("json");
    let access = Access::read("test", &line).expect("keys");
    let cluster = Cluster::start_with(1, |setup| setup.access = access).await;
    let browser = open(&cluster).await;
    let told = "document.getElementById('cluster').textContent.includes('API key')";
    browser.wait_until(told);
    browser.wait_until("document.activeElement?.name === 'key'");
    browser.fill("[name=key]", "sk-xomni-wrong");
    browser.fill("#prompt", PROMPT);
    browser.fill("[name=size]", SIZE);
    browser.click("#draw");
    browser.wait_until("document.getElementById('error').textContent.includes('API key')");
    assert_eq!(cluster.jobs(), 0);

    // Without a picture asked for, the right one shows the cluster.
    browser.fill("[name=key]", &key);
    browser.click("#prompt");
    browser.wait_until("document.querySelector('#cluster .ready')");
    browser.click("#draw");
    browser.wait_until("document.querySelector('figure.done img')?.naturalWidth === 96");

    browser.open(&format!("http://{}/", cluster.address));
    browser.wait_until("document.querySelector('#cluster .ready')");
    browser.wait_until("document.getElementById('access').hidden");
    browser.fill("#prompt", PROMPT);
    browser.fill("[name=size]", SIZE);
    browser.click("#draw");
    browser.wait_until("document.querySelector('figure.done img')?.naturalWidth === 96");
}
