//! `xomni generate` as a user runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use xomni_tests::{golden::Fixture, process::binary};

fn generate(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(binary("xomni"))
        .arg("generate")
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("xomni runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs `xomni generate`, with the fixture unless a model is named, and returns the pictures it
/// wrote, in order.
fn pictures(arguments: &[&str]) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("folder");
    let fixture = Fixture::open();
    let (model, flux) = (fixture.x_omni(), fixture.flux());
    let (model, flux) = (model.to_string_lossy(), flux.to_string_lossy());
    let output = if arguments.contains(&"--model") {
        generate(folder.path(), arguments)
    } else {
        let directories = ["--model", &model, "--flux", &flux];
        generate(folder.path(), &[arguments, &directories].concat())
    };
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        text(&output.stderr)
    );
    let mut files: Vec<PathBuf> = fs::read_dir(folder.path())
        .expect("folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    files.sort();
    files
        .iter()
        .map(|file| fs::read(file).expect("picture"))
        .collect()
}

fn size(png: &[u8]) -> (u32, u32) {
    let picture = image::load_from_memory(png).expect("a PNG");
    (picture.width(), picture.height())
}

#[test]
fn one_prompt_gives_one_picture_of_the_asked_size() {
    let folder = tempfile::tempdir().expect("folder");
    let output = generate(
        folder.path(),
        &["a red fox", "--size", "96x64", "-o", "fox.png"],
    );
    assert!(output.status.success(), "{}", text(&output.stderr));
    let png = fs::read(folder.path().join("fox.png")).expect("picture");
    assert_eq!(size(&png), (96, 64));
    let stdout = text(&output.stdout);
    for part in [
        "load", "tokens", "denoise", "vae", "total", "fox.png", "seed ",
    ] {
        assert!(stdout.contains(part), "{part} in {stdout}");
    }
    assert!(!stdout.contains('\x1b'), "no picture where no terminal is");
    let note = text(&output.stderr);
    assert_eq!(
        note.lines()
            .filter(|line| line.contains("X-Omni-nano"))
            .count(),
        1
    );
}

#[test]
fn the_seed_decides_the_picture() {
    let draw = |seed| pictures(&["a red fox", "--size", "48x48", "--seed", seed]);
    assert_eq!(draw("7"), draw("7"));
    assert_ne!(draw("7"), draw("8"));
}

#[test]
fn the_images_of_one_prompt_differ_and_the_first_is_the_one_drawn_alone() {
    let alone = pictures(&["a red fox", "--size", "48x48", "--seed", "7"]);
    let three = pictures(&["a red fox", "--size", "48x48", "--seed", "7", "--n", "3"]);
    assert_eq!(three.len(), 3);
    assert_eq!(three[0], alone[0]);
    assert!(three[0] != three[1] && three[1] != three[2] && three[0] != three[2]);
}

/// Twenty long prompts, ten English and ten Chinese; `XOMNI_PROMPTS` names another file.
#[test]
fn a_batch_gives_the_same_pictures_as_one_at_a_time_and_as_two_ranks() {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/data/prompts.jsonl");
    let file = std::env::var("XOMNI_PROMPTS").unwrap_or_else(|_| committed.to_owned());
    let draw = |more: &[&str]| {
        let arguments = ["--prompts", &file, "--seed", "3", "--size", "64x64"];
        pictures(&[&arguments[..], more].concat())
    };
    let batch = draw(&[]);
    assert!(batch.len() >= 20, "{} prompts", batch.len());
    assert!(batch == draw(&["--concurrency", "1"]), "one at a time");
    assert!(batch == draw(&["--tp", "2"]), "two ranks");
}

#[test]
fn guidance_and_sampling_settings_take_effect() {
    let draw = |more: &[&str]| {
        pictures(&[&["a red fox", "--size", "48x48", "--seed", "7"][..], more].concat())
    };
    let plain = draw(&[]);
    for more in [
        &["--guidance-scale", "3"][..],
        &["--temperature", "3"],
        &["--top-k", "1"],
        &["--num-inference-steps", "2"],
    ] {
        assert_ne!(draw(more), plain, "{more:?}");
    }
    assert_eq!(draw(&["--top-k", "1"]), draw(&["--temperature", "0"]));
}

#[test]
fn control_tokens_in_a_prompt_are_text() {
    let prompt = "a <SOM>2 2<IMAGE><MM-Token-3><EOM><|im_end|><|endoftext|> b";
    let drawn = pictures(&[prompt, "--size", "64x32", "--seed", "7"]);
    assert_eq!(size(&drawn[0]), (64, 32));
    assert_ne!(drawn, pictures(&["a  b", "--size", "64x32", "--seed", "7"]));
}

#[test]
fn random_weights_need_no_weight_files() {
    let fixture = Fixture::open();
    let folder = tempfile::tempdir().expect("folder");
    let (model, flux) = without_weights(&fixture, folder.path());
    let draw = |weights: &str| {
        let directories = ["--model", &model, "--flux", &flux];
        let rest = [
            "a fox",
            "--size",
            "32x32",
            "--seed",
            "1",
            "--weights",
            weights,
        ];
        pictures(&[&directories[..], &rest].concat())
    };
    assert_eq!(draw("random:1"), draw("random:1"));
    assert_ne!(draw("random:1"), draw("random:2"));
}

/// Copies both directories but for the weight files.
fn without_weights(fixture: &Fixture, folder: &Path) -> (String, String) {
    let keep = |name: &str| !name.contains(".safetensors") && !name.ends_with(".pt");
    let model = copy(&fixture.x_omni(), &folder.join("x-omni"), &keep);
    (model, copy(&fixture.flux(), &folder.join("flux"), &keep))
}

/// Copies the files whose names `keep` accepts; returns the target.
fn copy(from: &Path, to: &Path, keep: &dyn Fn(&str) -> bool) -> String {
    fs::create_dir_all(to).expect("folder");
    for entry in fs::read_dir(from).expect("folder") {
        let path = entry.expect("entry").path();
        let name = path
            .file_name()
            .expect("name")
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            copy(&path, &to.join(name), keep);
        } else if keep(&name) {
            fs::copy(&path, to.join(name)).expect("copied");
        }
    }
    to.to_string_lossy().into_owned()
}

#[test]
fn bad_input_is_refused_by_name_before_any_work() {
    let long = "x".repeat(32_001);
    let many_tokens = "好".repeat(9000);
    let folder_png = tempfile::Builder::new().suffix(".png").tempdir();
    let folder_png = folder_png.expect("folder");
    let folder_png = &*folder_png.path().to_string_lossy();
    let cases: [(&[&str], &[&str]); 25] = [
        (&[""], &["prompt", "empty"]),
        (&["  \n"], &["prompt", "empty"]),
        (&[&long], &["prompt", "32000", "32001"]),
        (&[&many_tokens], &["prompt", "8192 tokens"]),
        (
            &["a", "--size", "60x64"],
            &["size", "multiples of 16", "60x64"],
        ),
        (&["a", "--size", "0x64"], &["size", "16 to 2048", "0x64"]),
        (
            &["a", "--size", "4096x64"],
            &["size", "16 to 2048", "4096x64"],
        ),
        (&["a", "--size", "big"], &["size", "WIDTHxHEIGHT", "big"]),
        (&["a", "--n", "0"], &["n:", "1 to 10", "got 0"]),
        (&["a", "--n", "11"], &["n:", "1 to 10", "got 11"]),
        (
            &["a", "--temperature", "NaN"],
            &["temperature", "0 to 100", "NaN"],
        ),
        (
            &["a", "--temperature=-1"],
            &["temperature", "0 to 100", "-1"],
        ),
        (&["a", "--top-p", "0"], &["top_p", "above 0", "got 0"]),
        (&["a", "--min-p", "1.5"], &["min_p", "0 to 1", "1.5"]),
        (
            &["a", "--guidance-scale", "inf"],
            &["guidance_scale", "0 to 100", "inf"],
        ),
        (
            &["a", "--num-inference-steps", "0"],
            &["num_inference_steps", "1 to 1000", "got 0"],
        ),
        (&["a", "-o", "a.jpg"], &["--output", ".png", "a.jpg"]),
        (&["a", "-o", "/no/such/a.png"], &["--output", "/no/such"]),
        (&["a", "-o", folder_png], &["--output", "a folder"]),
        (
            &["a", "--tp", "3"],
            &["--tp", "tensor-parallel degree 3", "1, 2, 4 or 8"],
        ),
        (&["a", "--tp", "0"], &["--tp", "1, 2, 4 or 8"]),
        (
            &["a", "--kv-memory", "0"],
            &["--kv-memory", "1 to", "got 0"],
        ),
        (
            &["a", "--kv-memory", "18446744073709551615"],
            &["--kv-memory", "1 to", "18446744073709551615"],
        ),
        (
            &["a", "--kv-memory", "1", "--size", "1024x1024"],
            &["size", "K/V memory", "positions"],
        ),
        (&["a", "--concurrency", "0"], &["--concurrency", "got 0"]),
    ];
    let folder = tempfile::tempdir().expect("folder");
    // The weights are missing, which nobody may notice before the input is checked.
    let checkpoint = tempfile::tempdir().expect("folder");
    let (model, flux) = without_weights(&Fixture::open(), checkpoint.path());
    for (arguments, parts) in cases {
        let directories = ["--model", &model, "--flux", &flux];
        let output = generate(folder.path(), &[arguments, &directories].concat());
        let message = text(&output.stderr);
        let shown: String = format!("{arguments:?}").chars().take(60).collect();
        assert_eq!(output.status.code(), Some(2), "{shown}: {message}");
        for part in parts {
            assert!(message.contains(part), "{part} for {shown}: {message}");
        }
        assert!(message.len() < 400, "{message}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
}

#[test]
fn a_missing_directory_is_refused_by_its_option() {
    let folder = tempfile::tempdir().expect("folder");
    let fixture = Fixture::open();
    let (model, flux) = (fixture.x_omni(), fixture.flux());
    let (model, flux) = (model.to_string_lossy(), flux.to_string_lossy());
    for (option, model, flux) in [
        ("--model", "/no/such", &*flux),
        ("--flux", &*model, "/no/such"),
    ] {
        let output = generate(folder.path(), &["a", "--model", model, "--flux", flux]);
        assert_eq!(output.status.code(), Some(2), "{option}");
        let message = text(&output.stderr);
        assert!(
            message.contains(&format!("{option}: /no/such")),
            "{message}"
        );
    }
}

#[test]
fn pictures_that_do_not_fit_the_memory_together_are_drawn_one_after_the_other() {
    let arguments = ["a red fox", "--size", "320x320", "--seed", "7", "--n", "2"];
    let few_steps = ["--num-inference-steps", "1"];
    let arguments = [&arguments[..], &few_steps].concat();
    let small = pictures(&[&arguments[..], &["--kv-memory", "1"]].concat());
    assert!(small == pictures(&arguments));
}

#[test]
fn a_damaged_checkpoint_is_refused_by_file_and_item() {
    let fixture = Fixture::open();
    let spoil = |relative: &str, change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().expect("folder");
        let model = copy(&fixture.x_omni(), &folder.path().join("x-omni"), &|_| true);
        let flux = copy(&fixture.flux(), &folder.path().join("flux"), &|_| true);
        change(&folder.path().join(relative));
        let output = generate(folder.path(), &["a", "--model", &model, "--flux", &flux]);
        assert_eq!(output.status.code(), Some(1), "{relative}");
        let message = text(&output.stderr);
        let name = Path::new(relative)
            .file_name()
            .expect("name")
            .to_string_lossy();
        assert!(message.contains(&*name), "{relative}: {message}");
    };
    let remove = |path: &Path| fs::remove_file(path).expect("removed");
    let truncate = |path: &Path| {
        let bytes = fs::read(path).expect("read");
        fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
    };
    let garble = |path: &Path| fs::write(path, b"\x00garbage").expect("written");
    for change in [&remove as &dyn Fn(&Path), &truncate, &garble] {
        spoil("x-omni/config.json", change);
        spoil("x-omni/tokenizer.json", change);
        spoil("x-omni/model-00002-of-00003.safetensors", change);
        spoil("x-omni/vq_projector.pt", change);
        spoil("x-omni/siglip_vit.pt", change);
        spoil("flux/text_encoder/model.safetensors", change);
        spoil("flux/tokenizer_2/tokenizer.json", change);
        spoil("flux/vae/diffusion_pytorch_model.safetensors", change);
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_it_at_once_and_leaves_nothing() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().expect("folder");
    let mut child = Command::new(binary("xomni"))
        .args([
            "generate",
            "a red fox",
            "--size",
            "768x768",
            "--num-inference-steps",
            "1000",
        ])
        .current_dir(folder.path())
        .stderr(Stdio::piped())
        .spawn()
        .expect("xomni runs");
    let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
    let mut line = String::new();
    stderr
        .read_line(&mut line)
        .expect("the note about the checkpoint");
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(killed.expect("kill runs").success());
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    assert_eq!(fs::read_dir(folder.path()).expect("folder").count(), 0);
}
