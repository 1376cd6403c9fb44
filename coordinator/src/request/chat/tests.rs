//! Chats are refused by field, limit and value, or fit.

use std::{path::Path, sync::Arc};

use xomni_engine::{
    Error, Result,
    checkpoint::{GenerationConfig, XOmniConfig},
    text::{ChatTemplate, Tokenizer},
};

use super::*;
use crate::request::Limits;

fn model() -> (ChatModel, Limits) {
    let tiny = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/xomni-tiny/x-omni"
    );
    let dir = Path::new(tiny);
    let config = XOmniConfig::open(dir).expect("config");
    let generation = GenerationConfig::open(dir, &config).expect("generation");
    let tokenizer = Arc::new(Tokenizer::open(dir, &config).expect("tokenizer"));
    let template = Arc::new(ChatTemplate::open(dir).expect("template"));
    let images = Limits::new(&config, &generation);
    (
        ChatModel::new(&config, &generation, tokenizer, template),
        images,
    )
}

fn says(role: Role, text: &str) -> ChatMessage {
    ChatMessage {
        role,
        content: vec![Content::Text(text.into())],
    }
}

fn user(content: Vec<Content>) -> ChatMessage {
    ChatMessage {
        role: Role::User,
        content,
    }
}

fn picture(name: &str) -> Content {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/golden/xomni-tiny/images"
    );
    let file = std::fs::read(Path::new(folder).join(name)).expect("a picture");
    Content::Picture(file.into())
}

/// A PNG that says it has so many pixels.
fn png_header(width: u32, height: u32) -> Content {
    let Content::Picture(file) = picture("picture_2.png") else {
        unreachable!("a picture")
    };
    let mut file = file.to_vec();
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = !file[12..29].iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 * (crc & 1))
        })
    });
    file[29..33].copy_from_slice(&crc.to_be_bytes());
    Content::Picture(file.into())
}

fn with(change: impl FnOnce(&mut ChatRequest)) -> Result<ChatJob> {
    let (model, images) = model();
    let mut request = ChatRequest {
        messages: vec![says(Role::User, "What is this?")],
        ..ChatRequest::default()
    };
    change(&mut request);
    model.validate(request, &images)
}

#[test]
fn defaults_are_the_published_scripts() {
    let job = with(|_| {}).expect("valid");
    let text = job.text.expect("text");
    assert_eq!((job.n, text.n, text.max_tokens), (1, 1, 512));
    assert_eq!(text.sampling.temperature, 0.0);
    assert_eq!(job.prompt_tokens, text.prompt.len());
    assert!(job.image.is_none());
    let sampled = with(|r| r.temperature = Some(1.0)).expect("valid");
    let sampling = sampled.text.expect("text").sampling;
    assert_eq!(
        (sampling.top_k, sampling.top_p, sampling.min_p),
        (50, 1.0, 0.0)
    );
}

#[test]
fn a_picture_stands_before_its_question_in_a_prompt_of_known_length() {
    let (model, images) = model();
    let question = Content::Text("What is in this picture? 请描述。".into());
    let request = ChatRequest {
        messages: vec![user(vec![picture("picture_2.png"), question])],
        ..ChatRequest::default()
    };
    let job = model.validate(request, &images).expect("valid").text;
    let job = job.expect("text");
    assert_eq!(job.grids, [Grid::new(6, 4)]);
    let codes = vec![7; 24];
    let generate = model.generate_job(&job, &[codes]).expect("fits");
    assert_eq!(generate.prompt.len(), job.prompt.len());
    let text = model.tokenizer.decode(&generate.prompt, false);
    let turn = format!(
        "<|im_start|>user\n<SOM>6 4<IMAGE>{}<EOM>\nWhat is in this picture? 请描述。<|im_end|>\n",
        "<MM-Token-7>".repeat(24)
    );
    assert!(text.contains(&turn), "{text}");
    assert!(text.ends_with("<|im_start|>assistant\n"), "{text}");
}

#[test]
fn an_answer_fits_behind_its_prompt() {
    let long = "word ".repeat(2600);
    let prompt = with(|r| r.messages = vec![says(Role::User, &long)]).expect("fits");
    let text = prompt.text.expect("text");
    let (tokens, room) = (text.prompt.len(), 8192 - text.prompt.len());
    assert_eq!(text.max_tokens, room.min(512));
    let all = with(|r| {
        r.messages = vec![says(Role::User, &long)];
        r.max_tokens = Some(room);
    });
    assert_eq!(all.expect("fits").cost(), (tokens + room) as u64);
    let more = with(|r| {
        r.messages = vec![says(Role::User, &long)];
        r.max_tokens = Some(room + 1);
    });
    let refused = more.expect_err("too long").to_string();
    assert!(
        refused.starts_with(&format!("max_tokens: must be 1 to {room}")),
        "{refused}"
    );
    assert!(refused.contains("8192"), "{refused}");
}

#[test]
fn pictures_are_drawn_from_the_last_user_message() {
    let job = with(|r| {
        r.messages = vec![
            says(Role::System, "be brief"),
            says(Role::User, "hello"),
            says(Role::Assistant, "hi"),
            says(Role::User, "a red fox"),
        ];
        r.text = false;
        r.n = Some(2);
        r.seed = Some(7);
        r.image = Some(ImageRequest {
            size: Some("64x64".into()),
            ..ImageRequest::default()
        });
    });
    let job = job.expect("valid");
    let image = job.image.as_ref().expect("image");
    assert_eq!(
        (image.prompt.as_str(), image.n, image.seed),
        ("a red fox", 2, 7)
    );
    assert_eq!(image.request_id, job.request_id);
    assert!(job.text.is_none() && job.needs_decoder());
    assert_eq!(job.cost(), 2 * 16);
}

#[test]
fn bad_values_name_field_limit_and_value() {
    type Change = fn(&mut ChatRequest);
    let cases: [(&str, &str, Change); 24] = [
        ("messages", "1 to 4096", |r| r.messages.clear()),
        ("messages", "1 to 4096", |r| {
            r.messages = vec![says(Role::User, "x"); 4097]
        }),
        ("messages", "content", |r| r.messages = vec![user(vec![])]),
        ("messages", "content", |r| {
            r.messages = vec![says(Role::User, " \n")]
        }),
        ("messages", "user messages", |r| {
            r.messages[0].content.push(picture("picture_2.png"));
            r.messages[0].role = Role::Assistant;
        }),
        ("messages", "fewer than 8192 tokens", |r| {
            r.messages = vec![says(Role::User, &"word ".repeat(20_000))]
        }),
        ("messages", "1048576 bytes of text", |r| {
            r.messages = vec![says(Role::User, &"x".repeat(1 << 18)); 5]
        }),
        ("n", "1 to 10", |r| r.n = Some(0)),
        ("n", "1 to 10", |r| r.n = Some(11)),
        ("max_tokens", "1 to", |r| r.max_tokens = Some(0)),
        ("max_tokens", "8192", |r| r.max_tokens = Some(usize::MAX)),
        ("temperature", "0 to", |r| r.temperature = Some(f32::NAN)),
        ("top_p", "above 0", |r| r.top_p = Some(0.0)),
        ("min_p", "0 to 1", |r| r.min_p = Some(2.0)),
        ("stop", "16 strings", |r| r.stop = vec!["x".into(); 17]),
        ("stop", "1 to 256", |r| r.stop = vec![String::new()]),
        ("stop", "1 to 256", |r| r.stop = vec!["x".repeat(257)]),
        ("modalities", "text, image", |r| r.text = false),
        ("modalities", "text alone", |r| {
            r.messages[0].content.push(picture("picture_2.png"));
            r.image = Some(ImageRequest::default());
        }),
        ("image.size", "multiples of 16", |r| {
            r.image = Some(ImageRequest {
                size: Some("60x64".into()),
                ..ImageRequest::default()
            })
        }),
        ("image", "16 pictures", |r| {
            r.messages = vec![user(vec![picture("picture_2.png"); 17])]
        }),
        ("image", "20971520 bytes", |r| {
            r.messages = vec![user(vec![Content::Picture(vec![0; (20 << 20) + 1].into())])]
        }),
        ("image", "pixels", |r| {
            r.messages = vec![user(vec![png_header(100_000, 100_000)])]
        }),
        ("image", "PNG or JPEG", |r| {
            r.messages = vec![user(vec![Content::Picture(b"GIF89a".to_vec().into())])]
        }),
    ];
    for (name, part, change) in cases {
        match with(change) {
            Err(Error::BadInput {
                field,
                limit,
                value,
            }) => {
                assert_eq!(field, name, "{part}");
                assert!(limit.contains(part), "{name}: {limit}");
                assert!(!value.is_empty(), "{name}: {limit}");
            }
            other => panic!("{name} {part}: {other:?}"),
        }
    }
}
