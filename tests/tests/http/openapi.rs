//! The description that is served says what is done.

use serde_json::{Value, json};
use xomni_tests::{
    coordinator::{Cluster, ROOMY},
    http::Client,
};

use crate::images::{PATH, body};

/// Values of a property that its schema excludes.
fn excluded(schema: &Value) -> Vec<Value> {
    let mut values = vec![];
    let numbers = [
        ("minimum", -1.0),
        ("maximum", 1.0),
        ("exclusiveMinimum", 0.0),
    ];
    for (bound, beyond) in numbers {
        let Some(limit) = schema[bound].as_number() else {
            continue;
        };
        let whole = schema["type"].to_string().contains("integer");
        values.push(match limit.as_i128().filter(|_| whole) {
            // Not every one of them is a number that the type of the test could hold.
            Some(limit) => {
                let beyond = (limit + beyond as i128).to_string();
                serde_json::from_str(&beyond).expect("a number")
            }
            None => json!(limit.as_f64().expect("a number") + beyond),
        });
    }
    if let Some(longest) = schema["maxLength"].as_u64() {
        values.push(json!("x".repeat(longest as usize + 1)));
    }
    if schema["pattern"].is_string() || schema["enum"].is_array() {
        values.extend([json!(" "), json!("none of them")]);
    }
    let kinds = schema["type"].to_string();
    for (kind, value) in [
        ("string", json!("a")),
        ("integer", json!(1)),
        ("number", json!(1.5)),
        ("boolean", json!(true)),
        ("null", Value::Null),
        ("array", json!([])),
    ] {
        let number = kind == "integer" && kinds.contains("number");
        if schema["type"] != Value::Null && !kinds.contains(kind) && !number {
            values.push(value);
        }
    }
    values
}

#[tokio::test]
async fn what_the_schema_excludes_is_refused_by_name() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let document = client.get("/openapi.json").await.json();
    let schema = &document["components"]["schemas"]["GenerationRequest"];
    let properties = schema["properties"].as_object().expect("properties");
    let mut tried = 0;
    for (name, schema) in properties {
        for value in excluded(schema) {
            // A prompt of one letter is one.
            if name == "prompt" && value == "none of them" {
                continue;
            }
            let answer = client.post(PATH, &body(json!({name: value}))).await;
            assert_eq!(answer.status, 400, "{name}: {value}");
            assert_eq!(answer.json()["error"]["param"], name.as_str(), "{value}");
            tried += 1;
        }
    }
    assert!(tried > 2 * properties.len(), "{tried} values");
    assert_eq!(cluster.jobs(), 0);
}

#[tokio::test]
async fn every_path_is_there_with_its_methods_alone() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let document = client.get("/openapi.json").await.json();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{id}", "tiny").replace("{name}", "none");
        for method in ["get", "post"] {
            let answer = client
                .send(&method.to_uppercase(), &path, &[], vec![])
                .await;
            let described = &methods[method]["responses"];
            let status = answer.status.to_string();
            if described.is_null() {
                assert_eq!(answer.status, 405, "{method} {path}");
            } else {
                assert!(described[&status].is_object(), "{method} {path}: {status}");
            }
        }
    }
}

#[tokio::test]
async fn answers_have_what_the_schema_requires() {
    let cluster = Cluster::start(1, ROOMY).await;
    let client = Client::new(cluster.address);
    let document = client.get("/openapi.json").await.json();
    let schemas = &document["components"]["schemas"];
    let request = body(json!({"size": "16x16"}));
    let picture = client.post(PATH, &request).await.json();
    let refused = client.post(PATH, &json!({})).await.json();
    for (answer, schema) in [
        (&picture, &schemas["Images"]),
        (&picture["usage"], &schemas["Usage"]),
        (&refused["error"], &schemas["Error"]["properties"]["error"]),
        (
            &client.get("/v1/models/tiny").await.json(),
            &schemas["Model"],
        ),
    ] {
        for name in schema["required"].as_array().expect("names") {
            let name = name.as_str().expect("a name");
            assert!(answer.get(name).is_some(), "{name} in {answer}");
        }
        for name in answer.as_object().expect("fields").keys() {
            assert!(
                schema["properties"][name].is_object(),
                "{name} is described"
            );
        }
    }
}
