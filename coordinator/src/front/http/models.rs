//! What is served, as OpenAI lists it.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use xomni_worker::api::{Backbone, Decoder};

use super::{Api, problem::Problem};

#[derive(Debug, Serialize)]
pub struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Debug, Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

impl Model {
    fn of<B, D>(api: &Api<B, D>) -> Self {
        Self {
            id: api.front.model.clone(),
            object: "model",
            created: api.created,
            owned_by: "xomni",
        }
    }
}

/// All models: one.
pub async fn list<B: Backbone, D: Decoder>(State(api): State<Api<B, D>>) -> Json<List> {
    Json(List {
        object: "list",
        data: vec![Model::of(&api)],
    })
}

/// The model of this name.
pub async fn one<B: Backbone, D: Decoder>(
    State(api): State<Api<B, D>>,
    Path(id): Path<String>,
) -> Result<Json<Model>, Problem> {
    let model = Model::of(&api);
    match id == model.id {
        true => Ok(Json(model)),
        false => Err(Problem::no_model(format!("must be {}", model.id), id)),
    }
}
