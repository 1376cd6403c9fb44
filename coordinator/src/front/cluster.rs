//! `xomni.v1.Cluster` over an [`Observer`].

use tonic::{Request, Response, Status};
use xomni_proto::cluster::{
    ClusterStatus, GetStatusRequest,
    cluster_server::{Cluster, ClusterServer},
};

use crate::status::Observer;

/// Tells what an observer sees.
#[derive(Debug)]
pub struct ClusterService {
    observer: Observer,
}

/// The service of an observer, to be added to a server.
pub fn cluster_service(observer: Observer) -> ClusterServer<ClusterService> {
    ClusterServer::new(ClusterService { observer })
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn get_status(
        &self,
        _: Request<GetStatusRequest>,
    ) -> Result<Response<ClusterStatus>, Status> {
        Ok(Response::new(self.observer.status().into()))
    }
}
