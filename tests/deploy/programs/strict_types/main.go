// strict_types reads manifests as one JSON array from standard input and says what KEDA and the Prometheus operator
// would not understand of theirs: a field that their own types do not have, or a value of another type.
//
// It prints one line for each manifest that is not as it should be, and ends with 1 where there is any. Kinds that it does
// not know are an error too: whoever gives it one wants to hear of it.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	keda "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	strict "sigs.k8s.io/json"
)

type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
}

func empty(of header) any {
	switch of {
	case header{"keda.sh/v1alpha1", "ScaledObject"}:
		return &keda.ScaledObject{}
	case header{"keda.sh/v1alpha1", "TriggerAuthentication"}:
		return &keda.TriggerAuthentication{}
	case header{"monitoring.coreos.com/v1", "PodMonitor"}:
		return &monitoring.PodMonitor{}
	case header{"monitoring.coreos.com/v1", "ServiceMonitor"}:
		return &monitoring.ServiceMonitor{}
	case header{"monitoring.coreos.com/v1", "PrometheusRule"}:
		return &monitoring.PrometheusRule{}
	}
	return nil
}

func wrong(manifest json.RawMessage) error {
	var of header
	if err := json.Unmarshal(manifest, &of); err != nil {
		return err
	}
	object := empty(of)
	if object == nil {
		return fmt.Errorf("%s %s is not known here", of.APIVersion, of.Kind)
	}
	faults, err := strict.UnmarshalStrict(manifest, object)
	if err == nil && len(faults) > 0 {
		err = faults[0]
	}
	if err != nil {
		return fmt.Errorf("%s: %w", of.Kind, err)
	}
	return nil
}

func main() {
	var manifests []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&manifests); err != nil {
		fmt.Println("not a JSON array of manifests:", err)
		os.Exit(2)
	}
	code := 0
	for _, manifest := range manifests {
		if err := wrong(manifest); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	os.Exit(code)
}
