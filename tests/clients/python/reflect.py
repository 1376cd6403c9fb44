"""Draws a picture with what gRPC reflection tells alone: `reflect.py HOST:PORT PROMPT SIZE SEED > PNG`."""

import sys

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

address, prompt, size, seed = sys.argv[1:]
with grpc.insecure_channel(address) as channel:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "xomni.v1.Images" in database.get_services(), database.get_services()
    pool = descriptor_pool.DescriptorPool(database)
    method = pool.FindServiceByName("xomni.v1.Images").FindMethodByName("Generate")
    assert method.server_streaming and not method.client_streaming
    request = message_factory.GetMessageClass(method.input_type)()
    json_format.ParseDict({"prompt": prompt, "size": size, "seed": seed}, request)
    answer = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_stream(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    for event in call(request, timeout=60):
        if event.WhichOneof("event") == "picture":
            sys.stdout.buffer.write(event.picture.data)
