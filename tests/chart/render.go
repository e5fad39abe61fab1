// Renders a chart as `helm template` does, for machines without Helm: the same template engine and
// the same functions (sprig), without a cluster.
//
// GO111MODULE=off go run render.go CHART RELEASE VALUES.yaml
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"gopkg.in/yaml.v3"
)

func main() {
	if err := render(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func render(chart, release, given string) error {
	about, err := read(filepath.Join(chart, "Chart.yaml"))
	if err != nil {
		return err
	}
	values, err := read(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return err
	}
	changed, err := read(given)
	if err != nil {
		return err
	}
	overwrite(values, changed)
	all := template.New("chart").Option("missingkey=error")
	functions := sprig.TxtFuncMap()
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := all.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["toYaml"] = func(value interface{}) (string, error) {
		out, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(out), "\n"), err
	}
	all.Funcs(functions).Option("missingkey=zero")
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	if err != nil {
		return err
	}
	sort.Strings(paths)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if _, err := all.New(filepath.Base(path)).Parse(string(text)); err != nil {
			return err
		}
	}
	data := map[string]interface{}{
		"Values":  values,
		"Release": map[string]interface{}{"Name": release, "Namespace": "default", "Service": "Helm"},
		"Chart":   map[string]interface{}{"Name": about["name"], "Version": about["version"], "AppVersion": about["appVersion"]},
	}
	for _, path := range paths {
		if strings.HasSuffix(path, ".yaml") {
			fmt.Println("---")
			if err := all.ExecuteTemplate(os.Stdout, filepath.Base(path), data); err != nil {
				return err
			}
		}
	}
	return nil
}

// read gives every number as Helm does, by way of JSON: as a float64.
func read(path string) (map[string]interface{}, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parsed, found := map[string]interface{}{}, map[string]interface{}{}
	if err := yaml.Unmarshal(text, &parsed); err != nil {
		return nil, err
	}
	asJSON, err := json.Marshal(parsed)
	if err != nil {
		return nil, err
	}
	return found, json.Unmarshal(asJSON, &found)
}

// overwrite puts the values given over the chart's own, mapping by mapping.
func overwrite(into, from map[string]interface{}) {
	for key, value := range from {
		inner, ok := value.(map[string]interface{})
		if before, both := into[key].(map[string]interface{}); ok && both {
			overwrite(before, inner)
		} else {
			into[key] = value
		}
	}
}
