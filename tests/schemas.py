"""Protobuf files for tests, made without a compiler."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

FIELD = FieldDescriptorProto
Field = tuple[int, int] | tuple[int, int, int] | FieldDescriptorProto  # number, type and perhaps label


def message_field(
    number: int, type_name: str, kind: int = FIELD.TYPE_MESSAGE, label: int = FIELD.LABEL_OPTIONAL
) -> FieldDescriptorProto:
    """A field of another message type, or of an enum."""
    return FieldDescriptorProto(number=number, type_name=type_name, type=kind, label=label)  # type: ignore[arg-type]


def proto_message(name: str, **fields: Field) -> DescriptorProto:
    """A message type with these fields."""
    made = DescriptorProto(name=name)
    for field, given in fields.items():
        if isinstance(given, FieldDescriptorProto):
            one = made.field.add()
            one.CopyFrom(given)
            one.name = field
        else:
            number, kind, *label = given
            made.field.add(name=field, number=number, type=kind, label=label[0] if label else FIELD.LABEL_OPTIONAL)
    return made


def proto_file(
    package: str,
    messages: Sequence[DescriptorProto],
    imports: Sequence[str] = (),
    enums: Sequence[EnumDescriptorProto] = (),
) -> FileDescriptorProto:
    """A file in proto3."""
    return FileDescriptorProto(
        name="default",
        package=package,
        syntax="proto3",
        dependency=imports,
        message_type=messages,
        enum_type=enums,
    )
