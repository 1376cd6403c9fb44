//! A request gives bitwise the same tokens and logits alone or among others, in any chunking of
//! its prefill, resumed from any prefix, and on 1, 2, 4 or 8 ranks.

use proptest::prelude::*;
use xomni_engine::{
    checkpoint::{BackboneConfig, Weights},
    sampling::SamplingParams,
    schedule::{Mode, OutputSpec, Request, SchedulerConfig},
};
use xomni_tests::backbone::{Model, Output, Outputs, ROOMY, run_arrivals, start_group};

/// A backbone to run: the fixture's, or one with random weights.
#[derive(Debug, Clone)]
enum Subject {
    Fixture,
    Random(Box<BackboneConfig>),
}

impl Subject {
    fn config(&self) -> BackboneConfig {
        match self {
            Self::Fixture => Model::open().config.backbone,
            Self::Random(config) => (**config).clone(),
        }
    }

    fn run(
        &self,
        ranks: usize,
        limits: SchedulerConfig,
        arrivals: Vec<(usize, Request)>,
    ) -> Outputs {
        let weights = match self {
            Self::Fixture => Model::open().weights(),
            Self::Random(_) => Weights::random(5, "backbone"),
        };
        run_arrivals(
            &mut start_group(&self.config(), weights, ranks, limits),
            limits,
            arrivals,
        )
    }

    fn run_alone(&self, request: &Request) -> Outputs {
        self.run(1, ROOMY, vec![(0, request.clone())])
    }
}

/// Configurations whose heads and widths do not divide by the number of ranks.
fn subject() -> impl Strategy<Value = Subject> {
    let random = (
        prop_oneof![
            Just((1, 1)),
            Just((3, 2)),
            Just((4, 7)),
            Just((2, 5)),
            Just((8, 1))
        ],
        prop_oneof![Just(8), Just(10), Just(24)],
        5usize..90,
        prop_oneof![Just(None), Just(Some(9))],
        (1usize..3, 0usize..2, 0usize..2),
    )
        .prop_map(
            |((kv_heads, group), head_dim, intermediate, sliding_window, layers)| {
                let (language, adapter_layers, head_layers) = layers;
                Subject::Random(Box::new(BackboneConfig {
                    text_vocab: 50,
                    mm_vocab: 37,
                    image_vocab: 33,
                    hidden: 40,
                    intermediate,
                    layers: language + adapter_layers + head_layers,
                    adapter_layers,
                    head_layers,
                    heads: kv_heads * group,
                    kv_heads,
                    head_dim,
                    rms_norm_eps: 1e-6,
                    rope_theta: 1e6,
                    sliding_window,
                    max_positions: 8192,
                }))
            },
        );
    prop_oneof![1 => Just(Subject::Fixture), 3 => random]
}

#[derive(Debug, Clone)]
struct Wish {
    arrives: usize,
    prompt: Vec<usize>,
    outputs: usize,
    tokens: usize,
    text: bool,
    guided: bool,
    greedy: bool,
    priority: i32,
    /// How much of its tokens an output is given, in 1/256.
    resume: u8,
}

fn wish() -> impl Strategy<Value = Wish> {
    let prompt = prop::collection::vec(any::<u16>().prop_map(usize::from), 1..40);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        0usize..12,
        prompt,
        1usize..4,
        1usize..9,
        flags,
        0i32..3,
        any::<u8>(),
    )
        .prop_map(
            |(arrives, prompt, outputs, tokens, (text, guided, greedy), priority, resume)| Wish {
                arrives,
                prompt,
                outputs,
                tokens,
                text,
                guided,
                greedy,
                priority,
                resume,
            },
        )
}

fn request(id: u64, wish: &Wish, config: &BackboneConfig) -> Request {
    let ids = config.text_vocab + config.mm_vocab;
    let guided = wish.guided && !wish.text;
    Request {
        id,
        priority: wish.priority,
        mode: if wish.text { Mode::Text } else { Mode::Image },
        prompt: wish.prompt.iter().map(|p| (p % ids) as u32).collect(),
        negative_prompt: guided.then(|| vec![config.text_vocab as u32, 3, 4]),
        sampling: SamplingParams {
            temperature: if wish.greedy { 0.0 } else { 0.9 },
            top_k: 20,
            top_p: 0.95,
            min_p: 0.02,
            guidance_scale: if guided { 2.5 } else { 1.0 },
        },
        seed: id * 31,
        outputs: (0..wish.outputs as u32)
            .map(|image_index| OutputSpec {
                image_index,
                forced: vec![],
            })
            .collect(),
        max_tokens: wish.tokens,
        stop_ids: vec![],
        deadline: None,
        log_probs: true,
    }
}

fn bits(output: &Output) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let to_bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let logits: Vec<f32> = output.logits.iter().flatten().flatten().copied().collect();
    (
        output.tokens.clone(),
        to_bits(&output.log_probs),
        to_bits(&logits),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn results_do_not_depend_on_neighbours_chunks_prefix_or_ranks(
        subject in subject(),
        wishes in prop::collection::vec(wish(), 1..6),
        ranks in prop_oneof![Just(1usize), Just(2), Just(4), Just(8)],
        max_rows in 12usize..64,
        block_size in 1usize..20,
    ) {
        let config = subject.config();
        let requests: Vec<Request> =
            (1..).zip(&wishes).map(|(id, wish)| request(id, wish, &config)).collect();
        let limits = SchedulerConfig {
            max_rows,
            max_sequences: 12,
            max_queue: 100,
            blocks: 400usize.div_ceil(block_size) + 40,
            block_size,
            max_positions: 64,
            vocabulary: usize::MAX,
        };
        let mut arrivals = vec![];
        let mut alone = Outputs::new();
        for (wish, request) in wishes.iter().zip(&requests) {
            let outputs = subject.run_alone(request);
            // Every other output resumes from a prefix of what it drew alone.
            let mut resumed = request.clone();
            for (index, spec) in resumed.outputs.iter_mut().enumerate().step_by(2) {
                let drawn = &outputs[&(request.id, index)].tokens;
                spec.forced = drawn[..drawn.len() * usize::from(wish.resume) / 256].to_vec();
            }
            arrivals.push((wish.arrives, resumed));
            alone.extend(outputs);
        }
        let together = subject.run(ranks, limits, arrivals.clone());
        prop_assert_eq!(together.len(), alone.len());
        for (_, request) in &arrivals {
            for (index, spec) in request.outputs.iter().enumerate() {
                let mut expected = alone[&(request.id, index)].clone();
                expected.tokens.drain(..spec.forced.len());
                expected.log_probs.drain(..spec.forced.len());
                expected.logits.drain(..spec.forced.len());
                let actual = &together[&(request.id, index)];
                prop_assert_eq!(bits(actual), bits(&expected), "request {}", request.id);
            }
        }
    }
}

/// Attention merges splits of 256 positions: a prompt crosses the first bound, drawing the second.
#[test]
fn a_long_sequence_crosses_the_splits_of_attention_alike() {
    let config = Subject::Fixture.config();
    let wish = Wish {
        arrives: 0,
        prompt: (0..470).map(|p| p * 31).collect(),
        outputs: 2,
        tokens: 60,
        text: false,
        guided: true,
        greedy: false,
        priority: 0,
        resume: 0,
    };
    let mut request = request(5, &wish, &config);
    request.negative_prompt = request.negative_prompt.map(|ids| ids.repeat(90)); // 270
    let alone = Subject::Fixture.run_alone(&request);
    let limits = SchedulerConfig {
        max_rows: 37,
        max_sequences: 8,
        block_size: 7,
        ..ROOMY
    };
    let known = 20;
    let mut resumed = request.clone();
    resumed.outputs[0].forced = alone[&(5, 0)].tokens[..known].to_vec();
    let ranks = Subject::Fixture.run(2, limits, vec![(0, resumed)]);
    for (index, known) in [(0, known), (1, 0)] {
        let mut expected = alone[&(5, index)].clone();
        expected.tokens.drain(..known);
        expected.log_probs.drain(..known);
        expected.logits.drain(..known);
        assert_eq!(expected.tokens.len(), 60 - known);
        assert_eq!(bits(&ranks[&(5, index)]), bits(&expected), "output {index}");
    }
}

/// Prints what is drawn from a fixed seed, for [`the_same_seed_gives_the_same_tokens_in_a_new_process`].
#[test]
fn draws_of_a_fixed_seed() {
    let model = Model::open();
    let wish = Wish {
        arrives: 0,
        prompt: (0..20).collect(),
        outputs: 2,
        tokens: 24,
        text: false,
        guided: true,
        greedy: false,
        priority: 0,
        resume: 0,
    };
    let request = request(77, &wish, &model.config.backbone);
    let outputs = model.run(1, ROOMY, &[request]);
    let tokens: Vec<_> = outputs
        .values()
        .map(|output| output.tokens.clone())
        .collect();
    assert_ne!(tokens[0], tokens[1], "images of one request differ");
    println!("DRAWN {tokens:?}");
}

#[test]
fn the_same_seed_gives_the_same_tokens_in_a_new_process() {
    let drawn = || {
        let process = std::env::current_exe().expect("this test");
        let output = std::process::Command::new(process)
            .args(["--exact", "draws_of_a_fixed_seed", "--nocapture"])
            .output()
            .expect("a new process");
        let text = String::from_utf8(output.stdout).expect("text");
        let line = text
            .lines()
            .find(|line| line.contains("DRAWN"))
            .expect("a line of tokens");
        line[line.find("DRAWN").expect("found")..].to_owned()
    };
    assert_eq!(drawn(), drawn());
}
