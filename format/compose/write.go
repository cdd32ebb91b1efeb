package compose

import (
	"bytes"
	"encoding/json"

	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"

	"github.com/berth-project/berth/lib/fault"
)

// Write gives a project as text that reads back as the same project: "yaml"
// or "json", in docker compose's order of keys. A dollar sign is doubled, so
// that it is not read as a variable.
func Write(p *types.Project, format string) (text []byte, err error) {
	switch format {
	case "yaml":
		text, err = p.MarshalYAML()
	case "json":
		text, err = p.MarshalJSON()
	default:
		return nil, unknownFormat(format)
	}
	if err != nil {
		return nil, fault.Internalf("write the project: %w", err)
	}
	return bytes.ReplaceAll(text, []byte("$"), []byte("$$")), nil
}

// WriteModel gives a tree of LoadModel as text, its variables as they are.
func WriteModel(model map[string]any, format string) ([]byte, error) {
	switch format {
	case "yaml":
		var b bytes.Buffer
		e := yaml.NewEncoder(&b)
		e.SetIndent(2)
		if err := e.Encode(model); err != nil {
			return nil, fault.Internalf("write the model: %w", err)
		}
		return b.Bytes(), nil
	case "json":
		return json.MarshalIndent(model, "", "  ")
	}
	return nil, unknownFormat(format)
}

func unknownFormat(format string) error {
	return fault.Invalidf("unsupported format %q: use yaml or json", format)
}
