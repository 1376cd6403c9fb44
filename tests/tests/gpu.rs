//! Clusters whose backbones run on a GPU draw what one process draws on it, on one rank and on two, whatever is lost
//! meanwhile.
//!
//! Needs a GPU, NCCL on `LD_LIBRARY_PATH`, and binaries that were built with `--features xomni-cli/cuda`. All can be
//! carried to a machine without Rust: binaries lie one folder above this program.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use xomni_coordinator::request::ImageRequest;
use xomni_engine::{
    checkpoint::Weights,
    group::{GroupConfig, ThreadGroup},
    ops::cuda::{Cuda, Precision},
    schedule::SchedulerConfig,
};
use xomni_tests::{
    cluster::{Cluster, Shape, in_time},
    drawing::{Drawing, SEED, request},
    golden::Fixture,
    process::{wait_for, wait_within},
    tiny::{self, Tiny},
};
use xomni_worker::backbone::LocalBackbone;

const PROMPT: &str = "a lighthouse at night";
/// 192 tokens.
const SIZE: &str = "256x192";
/// Within this of a death, the group takes no more work.
const ABORT: Duration = Duration::from_secs(1);

/// One group of `tp` ranks on the one GPU, and a decoder on the processor.
const fn shape(tp: usize) -> Shape {
    Shape {
        backbone: &["--device", "cuda", "--kv-memory", "64"],
        fixture: Fixture::open,
        ..Shape::new(1, tp, 1)
    }
}

/// The picture that this process draws, its backbone on the GPU.
async fn alone() -> Vec<u8> {
    let model = Tiny::open();
    let (config, tokenizer) = (&model.0.config.backbone, &model.0.tokenizer);
    let scheduler = SchedulerConfig {
        max_rows: 64,
        max_sequences: 4,
        max_queue: 1,
        blocks: 128,
        block_size: 16,
        max_positions: config.max_positions,
        vocabulary: config.text_vocab + config.mm_vocab,
    };
    let group = GroupConfig {
        ranks: 1,
        max_rows: scheduler.max_rows,
        blocks: scheduler.blocks,
        block_size: scheduler.block_size,
        slots: scheduler.max_sequences,
        suppressed: vec![tokenizer.som(), tokenizer.eom(), tokenizer.image_marker()],
        keep_logits: false,
    };
    let weights = Weights::open_safetensors(&Fixture::open().x_omni(), "model");
    let gpu = Arc::new(Cuda::open(0, Precision::Bf16).expect("a GPU"));
    let ranks = ThreadGroup::start(&gpu, config, weights.expect("weights"), &group);
    let backbone = LocalBackbone::start(scheduler, ranks.expect("a rank")).expect("a thread");
    let request = ImageRequest {
        prompt: PROMPT.into(),
        size: Some(SIZE.into()),
        seed: Some(SEED),
        ..ImageRequest::default()
    };
    let job = request.validate(&model.limits()).expect("valid");
    let mut images = tiny::draw(backbone.handle(), model.clone(), &model, job).await;
    images.remove(0).png
}

async fn draw(cluster: &Cluster) -> Vec<u8> {
    let pictures = in_time("a picture", cluster.draw(request(PROMPT, SIZE))).await;
    pictures.expect("a picture").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_draw_what_one_draws_and_go_on_when_one_dies() {
    let expected = in_time("one process", alone()).await;
    let cluster = Cluster::start(shape(1)).await;
    assert!(draw(&cluster).await == expected, "one rank");
    drop(cluster);

    let mut cluster = Cluster::start(shape(2)).await;
    let since = Instant::now();
    assert!(draw(&cluster).await == expected, "two ranks");
    println!("two ranks drew in {:?}", since.elapsed());

    let drawing = Drawing::begin(&cluster.channel, request(PROMPT, SIZE)).await;
    let mut drawing = drawing.expect("taken");
    drawing.tokens(40).await.expect("draws");
    let leader = |cluster: &Cluster, sample: &str| cluster.groups[0][0].metrics().get(sample);
    let since = Instant::now();
    cluster.groups[0][1].process.kill();
    wait_within(ABORT, "the group to be lost", || {
        (leader(&cluster, "xomni_backbone_ready") == 0.0).then_some(())
    });
    println!("the group was lost after {:?}", since.elapsed());
    // The threads of the rank that is left have come back from the GPU.
    wait_for("the end of the epoch", || {
        (leader(&cluster, "xomni_backbone_epochs_lost_total") == 1.0).then_some(())
    });
    println!("the epoch ended after {:?}", since.elapsed());
    cluster.restart_rank(0, 1);
    let pictures = in_time("the picture", drawing.pictures()).await;
    assert!(
        pictures.expect("the picture") == [expected.clone()],
        "after a death"
    );
    println!("the picture came after {:?}", since.elapsed());
    assert!(draw(&cluster).await == expected, "the new epoch");
}
