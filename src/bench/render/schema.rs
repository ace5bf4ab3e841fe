//! The JSON Schema of a report, from the types and their comments.

use serde_json::{Map, Value, json};
use utoipa::{PartialSchema, ToSchema};

use crate::bench::results::{BenchReport, SCHEMA, SCHEMA_VERSION};

/// OpenAPI keeps its definitions here, JSON Schema in [`DEFINITIONS`].
const COMPONENTS: &str = "#/components/schemas/";
const DEFINITIONS: &str = "#/$defs/";

/// The JSON Schema (draft 2020-12) of what `--json` writes. OpenAPI 3.1 writes its schemas in that
/// language, so the derives that document the service's interface do for this, too.
pub fn json_schema() -> Value {
    let mut found = Vec::new();
    BenchReport::schemas(&mut found);
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut definitions = Map::new();
    for (name, schema) in found {
        definitions.insert(name, plain(json!(schema)));
    }
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Report of girandole bench",
        "$comment": "New fields may come without a new schema_version.",
    });
    let top = plain(json!(BenchReport::schema()));
    if let (Value::Object(schema), Value::Object(top)) = (&mut schema, top) {
        schema.extend(top);
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    schema["properties"]["schema"] = json!({ "const": SCHEMA });
    schema["properties"]["schema_version"] = json!({ "const": SCHEMA_VERSION });
    schema
}

/// With references into this document.
fn plain(schema: Value) -> Value {
    match schema {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(name, value)| match value {
                Value::String(target) if name == "$ref" => {
                    (name, json!(target.replace(COMPONENTS, DEFINITIONS)))
                }
                value => (name, plain(value)),
            });
            Value::Object(fields.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(plain).collect()),
        other => other,
    }
}
