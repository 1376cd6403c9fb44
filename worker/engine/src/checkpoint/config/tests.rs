use serde_json::json;

use super::*;
use crate::checkpoint::testing::{golden, golden_json, mutate, refusal, set};

fn parse(json: &Value) -> Result<XOmniConfig> {
    XOmniConfig::parse(&json.to_string(), Path::new("config.json"))
}

#[test]
fn golden_config() {
    let config = XOmniConfig::open(&golden("x-omni")).unwrap();
    let expected = BackboneConfig {
        text_vocab: 1024,
        mm_vocab: 288,
        image_vocab: 256,
        hidden: 128,
        intermediate: 296,
        layers: 6,
        adapter_layers: 1,
        head_layers: 1,
        heads: 8,
        kv_heads: 2,
        head_dim: 16,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        sliding_window: Some(131_072),
        max_positions: 8192,
    };
    assert_eq!(config.backbone, expected);
    assert_eq!(config.mm_special_tokens, ["<SOM>", "<EOM>", "<IMAGE>"]);
    assert_eq!(config.eos_token_ids, [1002]);
    assert_eq!(config.transform.long_size, 160);
    assert_eq!(config.encoder.siglip_path, "siglip_vit.pt");
    assert_eq!(config.encoder.heads, 16);
    assert_eq!(config.decoder.cfg_scale, 2.0);
}

#[test]
fn each_wrong_value_is_refused_by_name() {
    let cases = [
        ("model_type", Some(json!("qwen2"))),
        ("vocab_size", Some(json!(0))),
        ("vocab_size", Some(json!("1024"))),
        ("vocab_size", Some(json!(1_u64 << 40))),
        ("vocab_size", None),
        ("mm_vocab_size", Some(json!(-1))),
        ("image_vocab_size", Some(json!(289))),
        ("hidden_size", Some(json!(1 << 21))),
        ("hidden_size", Some(json!(130))),
        ("intermediate_size", Some(json!(0))),
        ("num_hidden_layers", Some(json!(1025))),
        ("num_mm_adap_layers", Some(json!(7))),
        ("num_mm_head_layers", Some(json!(6))),
        ("num_key_value_heads", Some(json!(3))),
        ("num_key_value_heads", Some(json!(16))),
        ("head_dim", Some(json!(15))),
        ("hidden_act", Some(json!("gelu"))),
        ("rope_scaling", Some(json!({"type": "yarn"}))),
        ("rope_theta", Some(json!(0.0))),
        ("rms_norm_eps", Some(json!(0.0))),
        ("tie_word_embeddings", Some(json!(true))),
        ("sliding_window", Some(json!(0))),
        ("eos_token_id", Some(json!([1002, 1312]))),
        ("mm_special_tokens", Some(json!(["<SOM>", "<EOM>"]))),
        (
            "mm_special_tokens",
            Some(json!(["<SOM>", "<SOM>", "<IMAGE>"])),
        ),
        ("vision_config", Some(json!(1))),
        ("vision_config.dtype", Some(json!("float64"))),
        ("vision_config.transform.random_ratio", Some(json!(0.5))),
        ("vision_config.transform.long_size", Some(json!(63))),
        ("vision_config.transform.patch_size", Some(json!(14))),
        ("vision_config.transform.max_aspect_ratio", Some(json!(0.5))),
        ("vision_config.encoder.siglip_name", Some(json!("clip"))),
        ("vision_config.encoder.siglip_name", None),
        ("vision_config.encoder.siglip_path", Some(json!("../a.pt"))),
        ("vision_config.encoder.projector_path", Some(json!("/a.pt"))),
        ("vision_config.encoder.codebook_size", Some(json!(255))),
        ("vision_config.encoder.z_channels", Some(json!(48))),
        ("vision_config.decoder.model_path", Some(json!("a/../../b"))),
        ("vision_config.decoder.cfg_scale", Some(json!(1.0))),
        ("vision_config.decoder.cfg_scale_2", Some(json!(3.0))),
        ("vision_config.decoder.num_inference_steps", Some(json!(0))),
        ("vision_config.decoder.upscale_factor", Some(json!(8))),
    ];
    for (path, value) in cases {
        let mut json = golden_json("x-omni/config.json");
        set(&mut json, path, value.clone());
        let (file, item, reason) = refusal(parse(&json));
        assert_eq!((file.as_str(), item.as_str()), ("config.json", path));
        assert!(reason.starts_with("must be "), "{path}: {reason}");
        let found = value.as_ref().map_or("absent".into(), |value| match value {
            Value::String(text) => text.clone(),
            Value::Array(_) | Value::Object(_) => String::new(),
            other => other.to_string(),
        });
        let number = found.strip_suffix(".0").unwrap_or(&found);
        assert!(reason.contains(number), "{path}: {reason}");
    }
}

#[test]
fn absent_and_null_windows_differ() {
    for (value, expected) in [
        (None, Some(4096)),
        (Some(json!(null)), None),
        (Some(json!(77)), Some(77)),
    ] {
        let mut json = golden_json("x-omni/config.json");
        set(&mut json, "sliding_window", value);
        assert_eq!(parse(&json).unwrap().backbone.sliding_window, expected);
    }
}

#[test]
fn head_dim_overrides_the_quotient() {
    let mut json = golden_json("x-omni/config.json");
    set(&mut json, "head_dim", Some(json!(32)));
    assert_eq!(parse(&json).unwrap().backbone.head_dim, 32);
}

#[test]
fn no_value_of_any_field_panics() {
    let file = Path::new("config.json");
    let json = golden_json("x-omni/config.json");
    mutate(&json, |text| XOmniConfig::parse(text, file));
    for text in ["", "[]", "{", "nul", "{}", &"[".repeat(100_000)] {
        assert_eq!(refusal(XOmniConfig::parse(text, file)).0, "config.json");
    }
}

#[test]
fn missing_file_is_named() {
    let error = XOmniConfig::open(Path::new("/nowhere")).unwrap_err();
    assert!(error.to_string().starts_with("/nowhere/config.json: "));
}
