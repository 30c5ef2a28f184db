#!/bin/bash
# Writes the manifests beside this script from the Helm chart with its defaults: `make manifests`. A test checks that they are
# up to date. Only labels and comments that are about Helm are left out.
set -euo pipefail
cd "$(dirname "$0")/../.."
helm=${HELM:-helm}
out=${OUT:-deploy/kubernetes}

render() { # render FILE TEMPLATE... [-- OPTION...]
    local file=$1 shown=()
    shift
    while [[ $# -gt 0 && $1 != -- ]]; do shown+=(--show-only "templates/$1.yaml"); shift; done
    [[ $# -eq 0 ]] || shift
    {
        echo "# Written by deploy/kubernetes/make.sh from deploy/helm/lstmstream; change that, or a copy of this file."
        "$helm" template lstmstream deploy/helm/lstmstream --namespace lstmstream --kube-version 1.31.0 "${shown[@]}" "$@" 2>/dev/null |
            sed '/^# Source: /d; /app.kubernetes.io\/managed-by:/d; /helm.sh\/chart:/d'
    } >"$out/$file"
}

render lstmstream.yaml serviceaccount configmap service statefulset poddisruptionbudget networkpolicy
render podmonitor.yaml podmonitor -- --set podMonitor.enabled=true
render scaledobject.yaml scaledobject -- --set keda.enabled=true
