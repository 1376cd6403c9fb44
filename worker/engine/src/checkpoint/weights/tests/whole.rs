//! Every tensor of every model of the golden checkpoint, with its shape.

use super::*;
use crate::checkpoint::{
    FluxConfig, XOmniConfig,
    flux::{ClipConfig, T5Config, VaeConfig},
};

/// The tensors that a model takes.
#[derive(Default)]
struct Shapes(Vec<(String, Vec<usize>)>);

impl Shapes {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push((name.into(), shape.to_vec()));
    }

    fn weight(&mut self, module: impl Into<String>, shape: &[usize]) {
        self.add(module.into() + ".weight", shape);
    }

    /// A weight of `shape` and a bias of its first dimension.
    fn biased(&mut self, module: impl Into<String>, shape: &[usize]) {
        let module = module.into();
        self.add(format!("{module}.bias"), &shape[..1]);
        self.weight(module, shape);
    }

    fn resnet(&mut self, name: &str, inputs: usize, outputs: usize) {
        self.biased(format!("{name}.norm1"), &[inputs]);
        self.biased(format!("{name}.conv1"), &[outputs, inputs, 3, 3]);
        self.biased(format!("{name}.norm2"), &[outputs]);
        self.biased(format!("{name}.conv2"), &[outputs, outputs, 3, 3]);
        if inputs != outputs {
            self.biased(format!("{name}.conv_shortcut"), &[outputs, inputs, 1, 1]);
        }
    }

    /// Takes all of them, then expects nothing else but `ignored` names.
    #[track_caller]
    fn take(self, mut weights: Weights, ignored: impl Fn(&str) -> bool) {
        for (name, shape) in self.0 {
            let tensor = weights.tensor(&name, &shape).unwrap();
            assert_eq!((tensor.name(), tensor.shape()), (name.as_str(), &shape[..]));
            assert_eq!(tensor.to_f32().len(), shape.iter().product::<usize>());
        }
        weights.finish(ignored).unwrap();
    }
}

#[test]
fn backbone() {
    let config = XOmniConfig::open(&golden("x-omni")).unwrap().backbone;
    let (hidden, inner) = (config.hidden, config.intermediate);
    let q = config.heads * config.head_dim;
    let kv = config.kv_heads * config.head_dim;
    let mut shapes = Shapes::default();
    for (prefix, rows) in [("lm", config.text_vocab), ("mm", config.mm_vocab)] {
        shapes.weight(format!("model.{prefix}_embed_tokens"), &[rows, hidden]);
        shapes.weight(format!("model.{prefix}_norm"), &[hidden]);
        shapes.weight(format!("{prefix}_head"), &[rows, hidden]);
    }
    for layer in (0..config.layers).map(|i| format!("model.layers.{i}")) {
        shapes.weight(format!("{layer}.input_layernorm"), &[hidden]);
        shapes.weight(format!("{layer}.post_attention_layernorm"), &[hidden]);
        for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
            shapes.biased(format!("{layer}.self_attn.{name}_proj"), &[rows, hidden]);
        }
        shapes.weight(format!("{layer}.self_attn.o_proj"), &[hidden, q]);
        shapes.weight(format!("{layer}.mlp.gate_proj"), &[inner, hidden]);
        shapes.weight(format!("{layer}.mlp.up_proj"), &[inner, hidden]);
        shapes.weight(format!("{layer}.mlp.down_proj"), &[hidden, inner]);
    }
    let weights = Weights::open_safetensors(&golden("x-omni"), "model").unwrap();
    shapes.take(weights, |_| false);
}

#[test]
fn vision_transformer() {
    let weights = Weights::open_torch(&golden("x-omni/siglip_vit.pt")).unwrap();
    let width = weights.shape("patch_embed.proj.weight").unwrap()[0];
    let mlp = weights.shape("blocks.0.mlp.fc1.weight").unwrap()[0];
    let depth = (0..)
        .take_while(|i| weights.contains(&format!("blocks.{i}.norm1.weight")))
        .count();
    assert!(depth > 0);
    let mut shapes = Shapes::default();
    shapes.add("pos_embed", &[1, 128 * 128, width]);
    shapes.biased("patch_embed.proj", &[width, 3, 16, 16]);
    for block in (0..depth).map(|i| format!("blocks.{i}")) {
        shapes.biased(format!("{block}.norm1"), &[width]);
        shapes.biased(format!("{block}.norm2"), &[width]);
        shapes.biased(format!("{block}.attn.qkv"), &[3 * width, width]);
        shapes.biased(format!("{block}.attn.proj"), &[width, width]);
        shapes.biased(format!("{block}.mlp.fc1"), &[mlp, width]);
        shapes.biased(format!("{block}.mlp.fc2"), &[width, mlp]);
    }
    shapes.take(weights, |name| !name.starts_with("blocks."));
}

#[test]
fn projector() {
    let config = XOmniConfig::open(&golden("x-omni")).unwrap().encoder;
    let (z, q) = (config.z_channels, config.codebook_dim);
    let mut shapes = Shapes::default();
    shapes.biased("quant_conv", &[q, z, 1, 1]);
    shapes.weight("quantize.embedding", &[config.codebook_size, q]);
    shapes.biased("post_quant_conv", &[z, q, 1, 1]);
    for block in 0..2 {
        for part in 1..3 {
            shapes.biased(format!("post_conv.{block}.conv{part}"), &[z, z, 3, 3]);
            shapes.biased(format!("post_conv.{block}.norm{part}"), &[z]);
        }
    }
    let file = golden("x-omni").join(config.projector_path);
    shapes.take(Weights::open_torch(&file).unwrap(), |_| false);
}

#[test]
fn flux_transformer() {
    let folder = golden("x-omni/flux_siglip");
    let config = FluxConfig::open(&folder, 64).unwrap();
    let (head, inner) = (config.head_dim, config.heads * config.head_dim);
    let mut shapes = Shapes::default();
    shapes.biased("x_embedder", &[inner, config.in_channels]);
    shapes.biased("context_embedder", &[inner, config.joint_attention_dim]);
    for (embedder, input) in [
        ("timestep", 256),
        ("guidance", 256),
        ("text", config.pooled_projection_dim),
    ] {
        let name = format!("time_text_embed.{embedder}_embedder");
        shapes.biased(format!("{name}.linear_1"), &[inner, input]);
        shapes.biased(format!("{name}.linear_2"), &[inner, inner]);
    }
    shapes.weight("siglip_embed", &[inner, config.siglip_channels]);
    for block in (0..config.double_blocks).map(|i| format!("transformer_blocks.{i}")) {
        for stream in ["", "_context"] {
            shapes.biased(format!("{block}.norm1{stream}.linear"), &[6 * inner, inner]);
            shapes.biased(
                format!("{block}.ff{stream}.net.0.proj"),
                &[4 * inner, inner],
            );
            shapes.biased(format!("{block}.ff{stream}.net.2"), &[inner, 4 * inner]);
        }
        for linear in ["to_q", "to_k", "to_v", "to_out.0", "to_add_out"] {
            shapes.biased(format!("{block}.attn.{linear}"), &[inner, inner]);
        }
        for linear in ["add_q_proj", "add_k_proj", "add_v_proj"] {
            shapes.biased(format!("{block}.attn.{linear}"), &[inner, inner]);
        }
        for norm in ["norm_q", "norm_k", "norm_added_q", "norm_added_k"] {
            shapes.weight(format!("{block}.attn.{norm}"), &[head]);
        }
    }
    for block in (0..config.single_blocks).map(|i| format!("single_transformer_blocks.{i}")) {
        shapes.biased(format!("{block}.norm.linear"), &[3 * inner, inner]);
        shapes.biased(format!("{block}.proj_mlp"), &[4 * inner, inner]);
        shapes.biased(format!("{block}.proj_out"), &[inner, 5 * inner]);
        for linear in ["to_q", "to_k", "to_v"] {
            shapes.biased(format!("{block}.attn.{linear}"), &[inner, inner]);
        }
        for norm in ["norm_q", "norm_k"] {
            shapes.weight(format!("{block}.attn.{norm}"), &[head]);
        }
    }
    shapes.biased("norm_out.linear", &[2 * inner, inner]);
    shapes.biased("proj_out", &[config.out_channels, inner]);
    let weights = Weights::open_safetensors(&folder, "diffusion_pytorch_model").unwrap();
    shapes.take(weights, |_| false);
}

#[test]
fn clip() {
    let folder = golden("flux/text_encoder");
    let config = ClipConfig::open(&folder).unwrap();
    let (hidden, inner) = (config.hidden, config.intermediate);
    let mut shapes = Shapes::default();
    let tables = "text_model.embeddings";
    shapes.weight(format!("{tables}.token_embedding"), &[config.vocab, hidden]);
    shapes.weight(
        format!("{tables}.position_embedding"),
        &[config.positions, hidden],
    );
    for layer in (0..config.layers).map(|i| format!("text_model.encoder.layers.{i}")) {
        shapes.biased(format!("{layer}.layer_norm1"), &[hidden]);
        shapes.biased(format!("{layer}.layer_norm2"), &[hidden]);
        for linear in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            shapes.biased(format!("{layer}.self_attn.{linear}"), &[hidden, hidden]);
        }
        shapes.biased(format!("{layer}.mlp.fc1"), &[inner, hidden]);
        shapes.biased(format!("{layer}.mlp.fc2"), &[hidden, inner]);
    }
    shapes.biased("text_model.final_layer_norm", &[hidden]);
    let weights = Weights::open_safetensors(&folder, "model").unwrap();
    shapes.take(weights, |name| name.ends_with("position_ids"));
}

#[test]
fn t5() {
    let folder = golden("flux/text_encoder_2");
    let config = T5Config::open(&folder).unwrap();
    let (width, inner) = (config.d_model, config.heads * config.d_kv);
    let mut shapes = Shapes::default();
    shapes.weight("shared", &[config.vocab, width]);
    let bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias";
    shapes.weight(bias, &[config.buckets, config.heads]);
    for block in (0..config.layers).map(|i| format!("encoder.block.{i}.layer")) {
        for linear in ["q", "k", "v"] {
            shapes.weight(format!("{block}.0.SelfAttention.{linear}"), &[inner, width]);
        }
        shapes.weight(format!("{block}.0.SelfAttention.o"), &[width, inner]);
        shapes.weight(format!("{block}.0.layer_norm"), &[width]);
        let dense = format!("{block}.1.DenseReluDense");
        shapes.weight(format!("{dense}.wi_0"), &[config.d_ff, width]);
        shapes.weight(format!("{dense}.wi_1"), &[config.d_ff, width]);
        shapes.weight(format!("{dense}.wo"), &[width, config.d_ff]);
        shapes.weight(format!("{block}.1.layer_norm"), &[width]);
    }
    shapes.weight("encoder.final_layer_norm", &[width]);
    let weights = Weights::open_safetensors(&folder, "model").unwrap();
    shapes.take(weights, |name| name == "encoder.embed_tokens.weight");
}

#[test]
fn vae_decoder() {
    let folder = golden("flux/vae");
    let config = VaeConfig::open(&folder).unwrap();
    let [first, .., last] = config.block_out_channels;
    let mut shapes = Shapes::default();
    shapes.biased("decoder.conv_in", &[last, config.latent_channels, 3, 3]);
    shapes.resnet("decoder.mid_block.resnets.0", last, last);
    shapes.resnet("decoder.mid_block.resnets.1", last, last);
    let attention = "decoder.mid_block.attentions.0";
    shapes.biased(format!("{attention}.group_norm"), &[last]);
    for linear in ["to_q", "to_k", "to_v", "to_out.0"] {
        shapes.biased(format!("{attention}.{linear}"), &[last, last]);
    }
    let mut inputs = last;
    for (i, outputs) in config.block_out_channels.into_iter().rev().enumerate() {
        let block = format!("decoder.up_blocks.{i}");
        for resnet in 0..=config.layers_per_block {
            shapes.resnet(&format!("{block}.resnets.{resnet}"), inputs, outputs);
            inputs = outputs;
        }
        if i < 3 {
            shapes.biased(
                format!("{block}.upsamplers.0.conv"),
                &[outputs, outputs, 3, 3],
            );
        }
    }
    shapes.biased("decoder.conv_norm_out", &[first]);
    shapes.biased("decoder.conv_out", &[3, first, 3, 3]);
    let weights = Weights::open_safetensors(&folder, "diffusion_pytorch_model").unwrap();
    shapes.take(weights, |name| name.starts_with("encoder."));
}
