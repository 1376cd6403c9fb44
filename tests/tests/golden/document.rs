use serde::Deserialize;
use xomni_engine::{checkpoint::XOmniConfig, text::Document};
use xomni_tests::golden::Fixture;

use crate::tokenizer::tokenizer;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    text: String,
    ids: Vec<u32>,
    force_text: Option<Vec<String>>,
    error: Option<String>,
    texts: Option<Vec<String>>,
    image_calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    h: i64,
    w: i64,
    token_ids: Vec<i64>,
    texts_argument: Vec<String>,
    images_before: usize,
    single_image_rule_ok: bool,
    token_count_ok: bool,
    token_range_ok: bool,
}

#[test]
fn golden_11_mmdecode() {
    let fixture = Fixture::open();
    let tokenizer = tokenizer(&fixture);
    let config = XOmniConfig::open(&fixture.x_omni()).unwrap();
    let codes = config.encoder.codebook_size;
    let golden: Golden = fixture.json("11_mmdecode");
    for case in &golden.cases {
        let name = &case.name;
        let ids = tokenizer.encode_document(&case.text).unwrap();
        assert_eq!(ids, case.ids, "{name}");
        let forced = case.force_text.clone().unwrap_or_default();
        let document = Document::decode(&tokenizer, &ids, &forced);
        if let Some(error) = &case.error {
            assert_eq!(error, "ValueError", "{name}");
            let refused = document.expect_err(name);
            assert!(!refused.retryable(), "{name}: {refused}");
            continue;
        }
        let document = document.unwrap();
        assert_eq!(Some(&document.texts), case.texts.as_ref(), "{name}");
        assert_eq!(document.images.len(), case.image_calls.len(), "{name}");
        for (image, call) in document.images.iter().zip(&case.image_calls) {
            assert_eq!((image.height, image.width), (call.h, call.w), "{name}");
            assert_eq!(image.tokens, call.token_ids, "{name}");
            assert_eq!(image.images_before, call.images_before, "{name}");
            let texts = match forced.get(image.images_before) {
                Some(forced) => std::slice::from_ref(forced),
                None => &document.texts[..image.texts_before],
            };
            assert_eq!(texts, call.texts_argument, "{name}");
            assert_eq!(Some(&image.prompt), texts.last(), "{name}");
            assert_eq!(image.is_single(), call.single_image_rule_ok, "{name}");
            assert_eq!(image.is_complete(), call.token_count_ok, "{name}");
            assert_eq!(image.is_within(codes), call.token_range_ok, "{name}");
            let drawable = image.is_single()
                && image.is_complete()
                && image.is_within(codes)
                && image.height > 0
                && image.width > 0;
            assert_eq!(image.check(codes).is_ok(), drawable, "{name}");
        }
    }
}
