use std::fs;

use serde_json::json;

use super::*;
use crate::checkpoint::testing::{golden, mutate, refusal};

fn config() -> XOmniConfig {
    XOmniConfig::open(&golden("x-omni")).unwrap()
}

fn parse(json: &Value) -> Result<GenerationConfig> {
    let file = Path::new("generation_config.json");
    GenerationConfig::parse(&json.to_string(), file, &config())
}

#[test]
fn defaults_are_those_of_the_published_script() {
    let expected = GenerationConfig {
        temperature: 1.0,
        top_k: 50,
        top_p: 1.0,
        min_p: 0.03,
        stop_ids: vec![1002],
    };
    let golden = GenerationConfig::open(&golden("x-omni"), &config()).unwrap();
    assert_eq!(golden, expected);
    let empty = tempfile::tempdir().unwrap();
    let absent = GenerationConfig::open(empty.path(), &config()).unwrap();
    assert_eq!(absent, expected);
}

#[test]
fn a_recent_file_replaces_defaults_but_not_min_p() {
    for version in [
        json!("4.50.0"),
        json!("4.50.0.dev0"),
        json!("5.0"),
        json!(null),
    ] {
        let config = parse(&json!({
            "transformers_version": version,
            "temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.5,
            "eos_token_id": [1001, 1002],
        }))
        .unwrap();
        assert_eq!(
            (config.temperature, config.top_k, config.top_p),
            (0.7, 20, 0.8)
        );
        assert_eq!(config.min_p, 0.03);
        assert_eq!(config.stop_ids, [1001, 1002]);
    }
}

#[test]
fn of_an_older_file_only_stop_ids_count() {
    for version in ["4.49.9", "4.5", "3.60.0"] {
        let config = parse(&json!({
            "transformers_version": version,
            "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": 7,
        }))
        .unwrap();
        assert_eq!((config.temperature, config.top_k), (1.0, 50));
        assert_eq!(config.stop_ids, [7]);
    }
}

#[test]
fn null_switches_a_filter_off() {
    let config = parse(&json!({"temperature": null, "top_k": null, "top_p": null})).unwrap();
    assert_eq!(
        (config.temperature, config.top_k, config.top_p),
        (1.0, 0, 1.0)
    );
}

#[test]
fn settings_without_a_processor_are_refused_by_name() {
    for (name, off) in UNSUPPORTED {
        let (neutral, active) = match off {
            Off::Number(off) => (json!(off), json!(off + 1.0)),
            Off::False => (json!(false), json!(true)),
            Off::Empty => (json!([]), json!([1])),
        };
        for harmless in [neutral, json!(null)] {
            parse(&json!({ *name: harmless })).unwrap();
        }
        let (file, item, reason) = refusal(parse(&json!({ *name: active })));
        assert_eq!(
            (file.as_str(), item.as_str()),
            ("generation_config.json", *name)
        );
        assert!(reason.contains("implemented"), "{reason}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    for (name, value) in [
        ("temperature", json!(-0.5)),
        ("temperature", json!(101)),
        ("top_p", json!(0)),
        ("temperature", json!("warm")),
        ("top_k", json!(-1)),
        ("top_k", json!(1.5)),
        ("top_p", json!(1.01)),
        ("eos_token_id", json!(1312)),
        ("eos_token_id", json!("<|im_end|>")),
        ("transformers_version", json!("new")),
        ("transformers_version", json!(4.51)),
    ] {
        assert_eq!(refusal(parse(&json!({ name: value }))).1, name);
    }
}

#[test]
fn no_value_of_any_field_panics() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("generation_config.json");
    let mut all = json!({"temperature": 1, "top_k": 1, "top_p": 1, "eos_token_id": 1,
        "transformers_version": "4.51.3"});
    for (name, _) in UNSUPPORTED {
        all[name] = json!(null);
    }
    let config = config();
    mutate(&all, |text| {
        fs::write(&file, text).unwrap();
        GenerationConfig::open(folder.path(), &config)
    });
}
