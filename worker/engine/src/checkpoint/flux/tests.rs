use std::fs;

use serde_json::json;

use super::*;
use crate::checkpoint::testing::{golden, golden_json, mutate, refusal, set};

const TRANSFORMER: &str = "x-omni/flux_siglip/config.json";
const SCHEDULER: &str = "flux/scheduler/scheduler_config.json";
const CLIP: &str = "flux/text_encoder/config.json";
const T5: &str = "flux/text_encoder_2/config.json";
const VAE: &str = "flux/vae/config.json";

/// Opens `text` as the configuration that the golden file `like` is.
fn open(like: &str, text: &str) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let name = Path::new(like).file_name().unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    let folder = folder.path();
    match like {
        TRANSFORMER => FluxConfig::open(folder, 64).map(drop),
        SCHEDULER => FlowConfig::open(folder).map(drop),
        CLIP => ClipConfig::open(folder).map(drop),
        T5 => T5Config::open(folder).map(drop),
        VAE => VaeConfig::open(folder).map(drop),
        other => panic!("{other}"),
    }
}

#[test]
fn golden_configs() {
    let flux = FluxConfig::open(&golden("x-omni/flux_siglip"), 64).unwrap();
    assert_eq!((flux.heads, flux.head_dim), (3, 24));
    assert_eq!((flux.double_blocks, flux.single_blocks), (2, 3));
    assert_eq!((flux.in_channels, flux.out_channels), (64, 64));
    assert_eq!(flux.axes_dims_rope, [4, 10, 10]);
    assert!(flux.guidance_embeds);
    let flow = FlowConfig::open(&golden("flux/scheduler")).unwrap();
    assert_eq!((flow.base_shift, flow.max_shift), (0.5, 1.15));
    let clip = ClipConfig::open(&golden("flux/text_encoder")).unwrap();
    assert_eq!((clip.hidden, clip.eos_token_id), (32, 2));
    let t5 = T5Config::open(&golden("flux/text_encoder_2")).unwrap();
    assert_eq!((t5.d_model, t5.d_kv, t5.heads), (40, 8, 4));
    assert_eq!((t5.buckets, t5.max_distance), (32, 128));
    let vae = VaeConfig::open(&golden("flux/vae")).unwrap();
    assert_eq!(vae.block_out_channels, [16, 16, 32, 32]);
    assert_eq!((vae.scaling_factor, vae.shift_factor), (0.3611, 0.1159));
}

#[test]
fn each_wrong_value_is_refused_by_name() {
    let cases = [
        (TRANSFORMER, "patch_size", Some(json!(2))),
        (TRANSFORMER, "axes_dims_rope", Some(json!([4, 10, 12]))),
        (TRANSFORMER, "axes_dims_rope", Some(json!([5, 9, 10]))),
        (TRANSFORMER, "axes_dims_rope", Some(json!([12, 12]))),
        (TRANSFORMER, "in_channels", Some(json!(16))),
        (TRANSFORMER, "out_channels", Some(json!(32))),
        (TRANSFORMER, "num_layers", Some(json!(0))),
        (TRANSFORMER, "attention_head_dim", None),
        (SCHEDULER, "use_dynamic_shifting", Some(json!(false))),
        (SCHEDULER, "use_dynamic_shifting", None),
        (SCHEDULER, "use_karras_sigmas", Some(json!(true))),
        (SCHEDULER, "shift_terminal", Some(json!(0.02))),
        (SCHEDULER, "time_shift_type", Some(json!("linear"))),
        (SCHEDULER, "max_image_seq_len", Some(json!(256))),
        (CLIP, "hidden_act", Some(json!("gelu"))),
        (CLIP, "hidden_size", Some(json!(33))),
        (CLIP, "max_position_embeddings", Some(json!(78))),
        (CLIP, "eos_token_id", Some(json!(-1))),
        (T5, "feed_forward_proj", Some(json!("relu"))),
        (T5, "feed_forward_proj", None),
        (T5, "relative_attention_num_buckets", Some(json!(30))),
        (T5, "relative_attention_max_distance", Some(json!(8))),
        (T5, "layer_norm_epsilon", Some(json!(1.0))),
        (VAE, "use_quant_conv", Some(json!(true))),
        (VAE, "use_post_quant_conv", None),
        (VAE, "mid_block_add_attention", Some(json!(false))),
        (VAE, "block_out_channels", Some(json!([16, 16, 32, 36]))),
        (VAE, "block_out_channels", Some(json!([16, 16, 32]))),
        (VAE, "latent_channels", Some(json!(4))),
        (VAE, "scaling_factor", Some(json!(0.0))),
        (VAE, "shift_factor", Some(json!(null))),
        (VAE, "act_fn", Some(json!("relu"))),
    ];
    for (golden, path, value) in cases {
        let mut json = golden_json(golden);
        set(&mut json, path, value);
        let (file, item, reason) = refusal(open(golden, &json.to_string()));
        assert!(golden.ends_with(&file), "{golden}: {file}");
        assert_eq!(item, path);
        assert!(reason.starts_with("must be "), "{path}: {reason}");
    }
}

#[test]
fn no_value_of_any_field_panics() {
    for golden in [TRANSFORMER, SCHEDULER, CLIP, T5, VAE] {
        mutate(&golden_json(golden), |text| open(golden, text));
    }
}
