//! Clusters whose backbones run on GPUs draw what one process draws on one, on one rank and on several, whatever is lost
//! meanwhile.
//!
//! Needs a GPU, NCCL on `LD_LIBRARY_PATH`, and binaries that were built with `--features xomni-cli/cuda`. All can be
//! carried to a machine without Rust: binaries lie one folder above this program. Ranks share the first GPU where there are
//! not as many GPUs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;
use xomni_coordinator::request::ImageRequest;
use xomni_engine::{
    checkpoint::Weights,
    group::{GroupConfig, ThreadGroup},
    ops::cuda::{Cuda, Precision},
    schedule::SchedulerConfig,
};
use xomni_tests::{
    cluster::{Cluster, Place, Shape, in_time},
    drawing::{Drawing, SEED, request},
    golden::Fixture,
    process::{wait_for, wait_within},
    tiny::{self, Tiny},
};
use xomni_worker::backbone::LocalBackbone;

const PROMPT: &str = "a lighthouse at night";
/// 768 tokens: enough that a rank dies long before the last.
const SIZE: &str = "512x384";
/// Within this of a death, the group takes no more work.
const ABORT: Duration = Duration::from_secs(1);

/// One test at a time has the GPUs.
static TURN: Mutex<()> = Mutex::const_new(());

/// GPUs of this machine, as far as a group has ranks.
fn gpus() -> usize {
    let there = |&gpu: &usize| Cuda::open(gpu, Precision::Bf16).is_ok();
    (0..8).take_while(there).count()
}

/// One group of `tp` ranks, and a decoder on the processor.
const fn shape(tp: usize, place: Place) -> Shape {
    Shape {
        place,
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

/// A group of `tp` processes draws what is expected, also a picture during which it loses the last of them.
async fn goes_on_when_a_rank_dies(tp: usize, place: Place, expected: &[u8]) {
    let what = format!("{tp} processes ({place:?})");
    let mut cluster = Cluster::start(shape(tp, place)).await;
    let since = Instant::now();
    assert!(draw(&cluster).await == expected, "{what}");
    println!("{what} drew in {:?}", since.elapsed());

    let drawing = Drawing::begin(&cluster.channel, request(PROMPT, SIZE)).await;
    let mut drawing = drawing.expect("taken");
    drawing.tokens(40).await.expect("draws");
    let leader = |cluster: &Cluster, sample: &str| cluster.groups[0][0].metrics().get(sample);
    let since = Instant::now();
    cluster.groups[0][tp - 1].process.kill();
    wait_within(ABORT, "the group to be lost", || {
        (leader(&cluster, "xomni_backbone_ready") == 0.0).then_some(())
    });
    println!("the group was lost after {:?}", since.elapsed());
    // The threads of the rank that is left have come back from the GPU.
    wait_for("the end of the epoch", || {
        (leader(&cluster, "xomni_backbone_epochs_lost_total") == 1.0).then_some(())
    });
    println!("the epoch ended after {:?}", since.elapsed());
    cluster.restart_rank(0, tp - 1);
    let pictures = in_time("the picture", drawing.pictures()).await;
    assert!(
        pictures.expect("the picture") == [expected],
        "{what}, after a death"
    );
    println!("the picture came after {:?}", since.elapsed());
    let retries = "xomni_retries_total{stage=\"backbone\"}";
    assert!(
        cluster.coordinator.metrics().get(retries) >= 1.0,
        "{what}: the picture had its tokens before the death"
    );
    assert!(draw(&cluster).await == expected, "{what}, the new epoch");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_ranks_draw_what_one_draws_and_go_on_when_one_dies() {
    let _turn = TURN.lock().await;
    let expected = in_time("one process", alone()).await;
    let cluster = Cluster::start(shape(1, Place::OneGpu)).await;
    assert!(draw(&cluster).await == expected, "one rank");
    drop(cluster);

    let place = match gpus() {
        0 | 1 => Place::OneGpu,
        _ => Place::Gpus,
    };
    goes_on_when_a_rank_dies(2, place, &expected).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two GPUs"]
async fn ranks_with_gpus_of_their_own_draw_what_one_draws_and_go_on_when_one_dies() {
    let _turn = TURN.lock().await;
    let gpus = gpus();
    assert!(gpus >= 2, "needs two GPUs, there are {gpus}");
    let expected = in_time("one process", alone()).await;
    for tp in [2, 4, 8].into_iter().filter(|&tp| tp <= gpus) {
        let cluster = Cluster::start(shape(tp, Place::GpusOfOneProcess)).await;
        let since = Instant::now();
        assert!(draw(&cluster).await == expected, "{tp} threads");
        println!("{tp} threads drew in {:?}", since.elapsed());
        drop(cluster);
        goes_on_when_a_rank_dies(tp, Place::Gpus, &expected).await;
    }
}
